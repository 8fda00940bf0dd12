"""What must hold whatever the implementation: the properties that define the operation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condconv.ops import cond_conv2d
from tests.ops.cases import IMPLS

ALL = ("reference", *IMPLS)
SHAPES = {
    "pointwise": ((6, 4, 1, 1), {}),
    "dense": ((6, 4, 3, 3), {"padding": 1}),
    "depthwise": ((4, 1, 3, 3), {"groups": 4}),
}


@pytest.fixture(params=SHAPES)
def layer(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, dict]:
    kernel, options = SHAPES[request.param]
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    weight = torch.randn(5, *kernel, dtype=torch.float64)
    bias = torch.randn(5, kernel[0], dtype=torch.float64)
    return x, weight, torch.rand(3, 5, dtype=torch.float64), bias, options


@pytest.mark.parametrize("impl", ALL)
def test_one_expert_of_weight_one_is_the_convolution(layer, impl: str) -> None:
    x, weight, _, bias, options = layer
    y = cond_conv2d(x, weight[:1], torch.ones(3, 1, dtype=x.dtype), bias[:1], impl=impl, **options)
    torch.testing.assert_close(y, F.conv2d(x, weight[0], bias[0], **options))


@pytest.mark.parametrize("impl", ALL)
def test_identical_experts_whose_weights_sum_to_one_are_the_convolution(layer, impl: str) -> None:
    x, weight, routing, bias, options = layer
    same, same_bias = weight[:1].expand_as(weight), bias[:1].expand_as(bias)
    y = cond_conv2d(x, same, routing.softmax(1), same_bias, impl=impl, **options)
    torch.testing.assert_close(y, F.conv2d(x, weight[0], bias[0], **options))


@pytest.mark.parametrize("impl", ALL)
def test_permuting_experts_with_their_weights_changes_nothing(layer, impl: str) -> None:
    x, weight, routing, bias, options = layer
    order = torch.tensor([3, 0, 4, 1, 2])
    y = cond_conv2d(x, weight[order], routing[:, order], bias[order], impl=impl, **options)
    torch.testing.assert_close(y, cond_conv2d(x, weight, routing, bias, impl=impl, **options))


@pytest.mark.parametrize("impl", ALL)
def test_an_example_does_not_depend_on_its_neighbours(layer, impl: str) -> None:
    x, weight, routing, bias, options = layer
    y = cond_conv2d(x, weight, routing, bias, impl=impl, **options)
    for index in range(len(x)):
        alone = cond_conv2d(x[[index]], weight, routing[[index]], bias, impl=impl, **options)
        torch.testing.assert_close(y[[index]], alone)


@pytest.mark.parametrize("impl", ALL)
def test_linear_in_the_routing_weights(layer, impl: str) -> None:
    x, weight, routing, bias, options = layer
    other = torch.randn_like(routing)

    def apply(weights: Tensor) -> Tensor:
        return cond_conv2d(x, weight, weights, bias, impl=impl, **options)

    torch.testing.assert_close(apply(2 * routing - 3 * other), 2 * apply(routing) - 3 * apply(other))


@pytest.mark.parametrize("impl", ALL)
def test_mixing_kernels_is_mixing_outputs(layer, impl: str) -> None:
    x, weight, routing, bias, options = layer
    outputs = torch.stack([F.conv2d(x, w, b, **options) for w, b in zip(weight, bias, strict=True)], dim=1)
    mixed = (routing[:, :, None, None, None] * outputs).sum(1)
    torch.testing.assert_close(cond_conv2d(x, weight, routing, bias, impl=impl, **options), mixed)


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_tf_same_gives_ceil_of_size_over_stride_and_pads_after_first(size: int, stride: int, kernel: int) -> None:
    """TensorFlow's rule worked by hand: total = max((ceil(n/s) - 1) s + k - n, 0), floor half of it before."""
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    weight = torch.randn(1, 1, 1, kernel, kernel, dtype=torch.float64)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    padded = F.pad(x, (before, after, before, after))
    expected = F.conv2d(padded, weight[0], stride=stride)
    y = cond_conv2d(x, weight, torch.ones(1, 1, dtype=x.dtype), stride=stride, padding="tf_same")
    assert y.shape[-1] == out
    torch.testing.assert_close(y, expected)
