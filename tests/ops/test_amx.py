"""On CPUs with AMX "auto" keeps away from torch's grouped convolutions in bf16, which read uninitialised padding."""

from __future__ import annotations

import pytest
import torch

from condconv.ops import conditions, plan_cache
from condconv.ops.native import library
from tests.ops.cases import BY_NAME

GROUPED = ("pointwise-grouped", "dense-uneven", "depthwise3", "depthwise-multiplier", "conv1d", "conv3d-depthwise")
FOLDED = ("dense3", "dense3-stride2", "dense3-tf-same", "transpose3d")


@pytest.fixture(params=["kernels", "no kernels"])
def with_amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AMX, with the compiled kernels and without."""
    monkeypatch.setattr(conditions, "AMX", True)
    monkeypatch.setattr(plan_cache, "_plans", {})
    if request.param == "no kernels":
        monkeypatch.setattr(library, "WHY_NOT", "left out by this test")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The groups of each convolution in bf16 that torch is asked for, forward and backward."""
    found: list[int] = []
    convolve, backward = torch.convolution, torch.ops.aten.convolution_backward

    def recorded(x, *arguments):
        found.extend([arguments[-1]] if x.dtype == torch.bfloat16 else [])
        return convolve(x, *arguments)

    def recorded_backward(grad, *arguments):
        found.extend([arguments[-2]] if grad.dtype == torch.bfloat16 else [])
        return backward(grad, *arguments)

    monkeypatch.setattr(torch, "convolution", recorded)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", recorded_backward)
    return found


@pytest.mark.usefixtures("with_amx")
@pytest.mark.parametrize("num_experts", [1, 4])
@pytest.mark.parametrize("name", [*GROUPED, *FOLDED])
def test_no_convolution_with_groups_in_bf16(name: str, num_experts: int, groups: list[int]) -> None:
    case = BY_NAME[name]
    x, weight, routing, bias = case.tensors(torch.float32)
    weight, routing, bias = (
        weight[:1].repeat_interleave(num_experts, 0),
        routing[:, :1].expand(-1, num_experts),
        bias[:1],
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = case.op(x, weight, routing, bias.expand(num_experts, -1), **case.options)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(each == 1 for each in groups)


@pytest.mark.usefixtures("with_amx")
def test_other_dtypes_choose_as_ever(groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "WHY_NOT", "left out by this test")
    case = BY_NAME["depthwise3"]
    arguments = case.tensors(torch.float32)
    taken = []
    for amx in (False, True):
        monkeypatch.setattr(conditions, "AMX", amx)
        monkeypatch.setattr(plan_cache, "_plans", {})
        case.op(*arguments, **case.options)
        taken.append(next(iter(plan_cache._plans.values())).implementation.name)
    assert taken == ["grouped", "grouped"]
