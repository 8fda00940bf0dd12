"""In bf16 "auto" keeps away from torch's gradient of a kernel that is larger than the map, which may be NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from condconv import ops
from condconv.ops import conditions, plan_cache
from condconv.ops.native import library

SIZES = {1: (2,), 2: (5, 1), 3: (3, 4, 1)}


def tensors(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 5, *size), (2, 6, 5, *(3 for _ in size)), (4, 2)
    x, weight, routing = (torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes)
    return x, weight, routing


@pytest.fixture(params=["kernels", "no kernels"])
def _choices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "_plans", {})
    monkeypatch.setattr(conditions, "AMX", False)
    if request.param == "no kernels":
        monkeypatch.setattr(library, "WHY_NOT", "left out by this test")


def taken() -> str:
    return next(iter(plan_cache._plans.values())).implementation.name


@pytest.mark.usefixtures("_choices")
@pytest.mark.parametrize("dims", SIZES)
def test_gradients_of_a_kernel_larger_than_the_input(dims: int) -> None:
    size = SIZES[dims]
    found, exact = (
        [each.requires_grad_() for each in tensors(size, dtype)] for dtype in (torch.bfloat16, torch.float64)
    )
    operation, stride = getattr(ops, f"cond_conv{dims}d"), (1, *(3 for _ in size[1:]))
    operation(*found, stride=stride, padding=1).sum().backward()
    assert taken() in ("native", "matmul")
    operation(*exact, stride=stride, padding=1, impl="reference").sum().backward()
    for own, other in zip(found, exact, strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=0.03, atol=0.03 * float(other.grad.abs().max()))


@pytest.mark.usefixtures("_choices")
@pytest.mark.parametrize("dims", SIZES)
def test_gradients_of_a_transposed_kernel_larger_than_the_output(dims: int) -> None:
    """The input has as many pixels as the kernel, but padding leaves fewer of the output."""
    found, exact = (
        [each.requires_grad_() for each in tensors((4,) * dims, dtype)] for dtype in (torch.bfloat16, torch.float64)
    )
    found[1], exact[1] = (each[1].detach().transpose(1, 2).contiguous().requires_grad_() for each in (found, exact))
    operation, padding = getattr(ops, f"cond_conv_transpose{dims}d"), (2, *(0 for _ in range(dims - 1)))
    operation(*found, padding=padding).sum().backward()
    assert taken() == "matmul"
    operation(*exact, padding=padding, impl="reference").sum().backward()
    for own, other in zip(found, exact, strict=True):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=0.03, atol=0.03 * float(other.grad.abs().max()))


@pytest.mark.usefixtures("_choices")
def test_a_transposed_kernel_larger_than_the_input_alone_chooses_as_ever() -> None:
    x, weight, routing = tensors((2, 2), torch.bfloat16)
    ops.cond_conv_transpose2d(x, weight.transpose(1, 2).contiguous().requires_grad_(), routing)
    assert taken() not in ("native", "matmul")


@pytest.mark.usefixtures("_choices")
@pytest.mark.parametrize(
    ("dtype", "training", "long"), [("float32", True, 1), ("bfloat16", False, 1), ("bfloat16", True, 9)]
)
def test_other_calls_choose_as_ever(dtype: str, training: bool, long: int) -> None:
    x, weight, routing = tensors((3, 4, long), getattr(torch, dtype))
    ops.cond_conv3d(x, weight.requires_grad_(training), routing, padding=1)
    assert taken() not in ("native", "matmul")
