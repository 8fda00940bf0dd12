"""Every implementation against the reference: outputs and all gradients, over the shared table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from condconv import ops
from tests.ops.cases import BY_NAME, CASES, IMPLS, Case


def run(case: Case, tensors: list[Tensor | None], impl: str) -> tuple[Tensor, list[Tensor]]:
    """Return the output and the gradients of a fixed weighting of it."""
    output = case.op(*tensors, impl=impl, **case.options)
    weighting = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    leaves = [tensor for tensor in tensors if tensor is not None]
    return output, list(torch.autograd.grad(output, leaves, weighting))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_equal_the_reference(case: Case, impl: str) -> None:
    tensors = case.tensors()
    expected, expected_grads = run(case, tensors, "reference")
    output, grads = run(case, tensors, impl)
    torch.testing.assert_close(output, expected)
    for name, grad, reference in zip("xwrb", grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, reference, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3", "transpose2d", "conv3d"])
def test_without_bias_and_without_gradients(name: str, impl: str) -> None:
    case = BY_NAME[name]
    tensors = case.tensors(bias=False)
    with torch.no_grad():
        output = case.op(*tensors, impl=impl, **case.options)
        expected = case.op(*tensors, impl="reference", **case.options)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("needed", range(4), ids=["x", "weight", "routing_weights", "bias"])
def test_only_the_gradients_asked_for_are_computed(needed: int, impl: str) -> None:
    case = BY_NAME["dense3"]
    full = case.tensors()
    _, expected = run(case, full, "reference")
    tensors = [t.detach().requires_grad_(i == needed) for i, t in enumerate(full) if t is not None]
    output = case.op(*tensors, impl=impl, **case.options)
    weighting = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    output.backward(weighting)
    assert [tensor.grad is not None for tensor in tensors] == [index == needed for index in range(4)]
    torch.testing.assert_close(tensors[needed].grad, expected[needed])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3", "transpose2d", "dense3-tf-same"])
def test_channels_last_in_channels_last_out(name: str, impl: str) -> None:
    case = BY_NAME[name]
    tensors = case.tensors()
    x = tensors[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    expected, expected_grads = run(case, tensors, "reference")
    output, grads = run(case, [x, *tensors[1:]], impl)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("impl", IMPLS)
def test_channels_last_3d_in_channels_last_3d_out(impl: str) -> None:
    case = BY_NAME["conv3d"]
    tensors = case.tensors()
    x = tensors[0].detach().to(memory_format=torch.channels_last_3d)
    output = case.op(x, *tensors[1:], impl=impl, **case.options)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(output, case.op(*tensors, impl="reference", **case.options))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3"])
def test_experts_stored_channels_last(name: str, impl: str) -> None:
    case = BY_NAME[name]
    x, weight, routing, bias = case.tensors()
    expected, expected_grads = run(case, [x, weight, routing, bias], "reference")
    laid_out = (
        weight.detach().flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, weight.shape[:2])
    )
    output, grads = run(case, [x, laid_out.requires_grad_(), routing, bias], impl)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3", "transpose2d"])
def test_any_strides(name: str, impl: str) -> None:
    case = BY_NAME[name]
    x, weight, routing, bias = case.tensors()
    strided = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x.detach()).requires_grad_()
    turned = routing.detach().T.contiguous().T.requires_grad_()
    transposed = weight.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    expected, expected_grads = run(case, [x, weight, routing, bias], "reference")
    output, grads = run(case, [strided, transposed, turned, bias], impl)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3", "depthwise3-large", "transpose2d", "conv1d"])
def test_low_precision_errs_no_more_than_twice_the_reference_does(name: str, impl: str, dtype: torch.dtype) -> None:
    """The budget is the error of the reference itself in that dtype, against fp64 on the same rounded inputs."""
    case = BY_NAME[name]
    tensors = [tensor.detach().to(dtype) for tensor in case.tensors()]
    exact = case.op(*(tensor.double() for tensor in tensors), impl="reference", **case.options)
    scale = exact.abs().max()
    budget = (case.op(*tensors, impl="reference", **case.options) - exact).abs().max()
    output = case.op(*tensors, impl=impl, **case.options)
    assert output.dtype == dtype
    # The reference rounds once; an implementation rounds the mixed kernel too, hence one more rounding of the result.
    assert (output - exact).abs().max() <= 2 * budget + torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3", "linear"])
def test_autocast_computes_in_its_dtype_and_gives_fp32_gradients(name: str, impl: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    tensors = [tensor.detach().float().requires_grad_() for tensor in case.tensors()]
    with torch.autocast("cpu", dtype):
        output = case.op(*tensors, impl=impl, **case.options)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in tensors)
    exact = case.op(*(tensor.detach().double() for tensor in tensors), impl="reference", **case.options)
    assert (output - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_routing_weights_of_another_dtype_are_used_in_fp32() -> None:
    x, weight = torch.randn(2, 3, 5, 5).bfloat16(), torch.randn(4, 6, 3, 3, 3).bfloat16()
    routing = torch.rand(2, 4)
    output = ops.cond_conv2d(x, weight, routing)
    assert not torch.equal(output, ops.cond_conv2d(x, weight, routing.bfloat16()))
    exact = ops.cond_conv2d(x.double(), weight.double(), routing.double(), impl="reference")
    assert (output - exact).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_a_kernel_as_it_is_gives_the_ordinary_convolution() -> None:
    """One expert of weight one: the table's conventions are torch's own."""
    for case in CASES:
        if case.op is ops.cond_linear or case.x[0] == 0 or case.options.get("padding") == "tf_same":
            continue
        x, weight, _, bias = case.tensors()
        options = dict(case.options)
        mode = options.pop("padding_mode", "zeros")
        if mode != "zeros" or case.name == "dense2-same-even":
            continue
        ones = torch.ones(case.x[0], 1, dtype=x.dtype)
        plain = getattr(torch.nn.functional, case.op.__name__.removeprefix("cond_"))
        expected = plain(x, weight[0], bias[0], **options)
        torch.testing.assert_close(case.op(x, weight[:1], ones, bias[:1], **options), expected)


def test_an_expert_that_is_not_used_may_overflow_in_fp16() -> None:
    x, weight = torch.full((1, 8, 1), 1.0, dtype=torch.float16), torch.full((2, 4, 8, 1), 100.0)
    weight[1] = 60000.0
    for impl in ("reference", "mix_outputs", "matmul", "auto"):
        y = ops.cond_conv1d(x, weight.half(), torch.tensor([[1.0, 0.0]]), impl=impl)
        assert torch.equal(y, torch.full((1, 4, 1), 800.0, dtype=torch.float16)), impl
