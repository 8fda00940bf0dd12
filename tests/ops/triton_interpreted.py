"""The Triton kernels under Triton's interpreter; run by test_triton.py, in a process of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from condconv.ops import cond_conv2d
from condconv.ops.triton import limits, tiles
from tests.ops.triton_checks import LAYOUTS, SHAPES, check, draw

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Triton 3.6's interpreter takes arrays of one number for numbers.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")
GEOMETRY = ([1, 1], [1, 1], [1, 1], 1, False, [0, 0])


def test_the_interpreter_is_in_use() -> None:
    assert limits.INTERPRETED


# Each shape in one of two ways: the interpreter takes a second for each.
@pytest.mark.parametrize(
    ("name", "layout", "dtype"),
    [(name, *(("contiguous", FP32) if index % 2 else ("channels_last", BF16))) for index, name in enumerate(SHAPES)],
)
def test_output_and_gradients_equal_the_references(name: str, layout: str, dtype: torch.dtype) -> None:
    (x, *rest), options = draw(name, dtype)
    y, grad_x, *_ = check([x.contiguous(memory_format=LAYOUTS[layout]), *rest], options, dtype)
    for tensor in (y, grad_x):
        assert tensor.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("pointwise-tails", "contiguous"),
        pytest.param("dense", "channels_last", marks=pytest.mark.slow),
        pytest.param("depthwise", "channels_last", marks=pytest.mark.slow),
    ],
)
def test_kernels_mixed_before(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two examples at a time, of three."""
    (x, weight, *rest), options = draw(name, BF16)
    monkeypatch.setattr(tiles, "_FUSED_PIXELS", 0)
    monkeypatch.setattr(tiles, "_MIXED_BYTES", 2 * 2 * weight[0].numel())
    check([x.contiguous(memory_format=LAYOUTS[layout]), weight, *rest], options, BF16)


@pytest.mark.parametrize("name", ["pointwise-padded", "dense-one-example", "depthwise-many-experts"])
def test_half_precision(name: str) -> None:
    tensors, options = draw(name, FP16)
    check(tensors, options, FP16)


@pytest.mark.parametrize("name", ["pointwise-padded", "dense-one-example", "depthwise-many-experts"])
def test_any_strides(name: str) -> None:
    (x, weight, routing, bias), options = draw(name, FP32)
    x = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    weight = weight.transpose(0, -1).contiguous().transpose(0, -1)
    check([x, weight, routing.T.contiguous().T, bias], options, FP32)


@pytest.mark.parametrize("needed", range(4), ids=["x", "weight", "routing_weights", "bias"])
def test_only_the_gradients_asked_for(needed: int) -> None:
    tensors, options = draw("pointwise-padded", FP32)
    leaves = [tensor.requires_grad_(index == needed) for index, tensor in enumerate(tensors)]
    expected = torch.autograd.grad(cond_conv2d(*leaves, impl="matmul", **options).square().sum(), leaves[needed])
    cond_conv2d(*leaves, impl="triton", **options).square().sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [index == needed for index in range(4)]
    torch.testing.assert_close(leaves[needed].grad, expected[0], rtol=1e-5, atol=1e-4)


def test_no_examples() -> None:
    tensors, options = draw("dense", FP32)
    x, weight, routing, bias = (tensor.requires_grad_() for tensor in tensors)
    y = cond_conv2d(x[:0], weight, routing[:0], bias, impl="triton", **options)
    assert y.shape == (0, 5, 6, 4)  # the kernel is 2 x 3
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


def test_autocast_mixes_experts_in_fp32() -> None:
    """Their rounding to bf16 would cancel the difference of 1/512 between them."""
    x, weight = torch.ones(2, 1, 3, 3), torch.tensor([1 + 1 / 512, -1.0]).view(2, 1, 1, 1, 1).requires_grad_()
    with torch.autocast("cpu", BF16):
        y = cond_conv2d(x, weight, torch.ones(2, 2), impl="triton")
    assert y.dtype == BF16
    assert y.unique().tolist() == [1 / 512]
    y.float().sum().backward()
    assert weight.grad.flatten().tolist() == [18.0, 18.0]  # 2 examples of 9 pixels
    assert weight.grad.dtype == FP32


def test_the_gradient_of_one_example_leaves_out_its_neighbours() -> None:
    (x, weight, routing, bias), options = draw("pointwise-tails", FP32)
    x[1] = float("nan")
    y = cond_conv2d(x, weight, routing, bias, impl="triton", **options)
    assert y.isfinite().flatten(1).all(1).tolist() == [True, False, True]


# opcheck itself reads .grad of copies it made of the inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str) -> None:
    (x, weight, routing, bias), _ = draw("pointwise-padded", FP32)  # the geometry is that of its options
    x = x.contiguous(memory_format=LAYOUTS[layout])
    leaves = [tensor.requires_grad_() for tensor in (x, weight, routing, bias)]
    torch.library.opcheck(torch.ops.condconv.mixed_conv, (*leaves, *GEOMETRY, "triton"), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_one_graph_for_all_batch_sizes() -> None:
    (_, weight, _, _), options = draw("pointwise-stride", FP32)
    weight.requires_grad_()
    counter = CompileCounterWithBackend("aot_eager")

    def call(x: Tensor, routing: Tensor) -> Tensor:
        return cond_conv2d(x, weight, routing, impl="triton", **options)

    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    for batch in (7, 3):
        arguments = torch.randn(batch, 4, 6, 5), torch.rand(batch, 2)
        y = compiled(*arguments)
        torch.testing.assert_close(y, call(*arguments))
        (grad,) = torch.autograd.grad(y.sum(), weight)
        torch.testing.assert_close(grad, torch.autograd.grad(call(*arguments).sum(), weight)[0])
    assert counter.frame_count == 1


def test_fp32_is_rounded_to_tf32_only_where_torch_may() -> None:
    from condconv.ops.triton.dense import precision

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert precision() == "ieee"
        torch.set_float32_matmul_precision("high")
        assert precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
