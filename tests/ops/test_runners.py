"""Runners, which plans hold: the numbers of the registered operator to the bit, without looking at arguments again."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor

from condconv.errors import UsageError
from condconv.nn import CondConv2d
from condconv.ops import arguments, cond_conv2d, plan_cache, validation
from condconv.ops.implementation import Implementation
from condconv.ops.implementations import GROUPED, NATIVE, TABLE
from condconv.ops.native import library
from tests.ops.cases import CASES, Case

IMPLS = [each.name for each in TABLE.values() if each.backward is not None and each.name not in ("native", "triton")]
COMPILED = pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler")
FLAT = [case for case in CASES if case.op is cond_conv2d]
X, W, R, BIAS = torch.randn(2, 8, 5, 4), torch.randn(3, 6, 8, 3, 3), torch.rand(2, 3), torch.randn(3, 6)


def compare(case: Case, impl: str, dtype: torch.dtype, layout: torch.memory_format, bias: bool) -> None:
    """Compare two calls without gradients, the first and a repeated one, with the operator's forward pass."""
    x, weight, routing, shift = case.tensors(dtype, bias=bias)
    assert x is not None
    if x.dim() == 4:
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
    expected = case.op(x, weight, routing, shift, impl=impl, **case.options).detach()
    for _ in range(2):
        with torch.no_grad():
            y = case.op(x, weight, routing, shift, impl=impl, **case.options)
        assert torch.equal(y, expected)
        assert (y.stride(), y.dtype) == (expected.stride(), expected.dtype)
        assert not y._is_view() or case.op.__name__ == "cond_linear"


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_are_the_operators(case: Case, impl: str) -> None:
    compare(case, impl, torch.float32, torch.contiguous_format, bias=True)
    compare(case, impl, torch.float64, torch.channels_last, bias=False)
    compare(case, impl, torch.bfloat16, torch.channels_last, bias=True)


@COMPILED
@pytest.mark.parametrize("case", FLAT, ids=str)
def test_the_numbers_of_the_compiled_kernels_are_the_operators(case: Case) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compare(case, NATIVE.name, dtype, torch.contiguous_format, bias=True)
        compare(case, NATIVE.name, dtype, torch.channels_last, bias=False)


@pytest.mark.parametrize("impl", [*IMPLS, pytest.param("native", marks=COMPILED)])
def test_a_repeated_call_checks_and_prepares_nothing(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("called again")

    with torch.no_grad():
        first = cond_conv2d(X, W, R, BIAS, (1, 1), 1, impl=impl)
        for place, name in (
            (plan_cache, "make_plan"),
            (arguments, "normalised"),
            (validation, "check_tensors"),
            (Implementation, "bind"),
            (library, "convolution"),
        ):
            monkeypatch.setattr(place, name, forbidden)
        assert torch.equal(cond_conv2d(X, W, R, BIAS, (1, 1), 1, impl=impl), first)
        assert torch.equal(cond_conv2d(2 * X, W, R, impl=impl, padding=1, stride=(1, 1), bias=2 * BIAS), 2 * first)


@pytest.mark.parametrize("impl", [*IMPLS, pytest.param("native", marks=COMPILED)])
def test_a_plan_keeps_no_tensor(impl: str) -> None:
    x, weight, routing, bias = X.clone(), W.clone(), R.clone(), BIAS.clone()
    left = [weakref.ref(each) for each in (x, weight, routing, bias)]
    with torch.no_grad():
        left.append(weakref.ref(cond_conv2d(x, weight, routing, bias, impl=impl)))
    del x, weight, routing, bias
    gc.collect()
    assert [each() for each in left] == [None] * 5


@COMPILED
def test_threads_share_a_plan() -> None:
    """The C library is given a problem of its own by each call."""
    x = torch.randn(4, 16, 24, 24).contiguous(memory_format=torch.channels_last)
    weight, found = torch.randn(3, 16, 16, 3, 3), {}

    def repeat(index: int) -> None:
        routing = torch.eye(3)[[index] * 4]
        with torch.no_grad():
            found[index] = [cond_conv2d(x, weight, routing, impl="native") for _ in range(20)]

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in found.items():
        expected = torch.nn.functional.conv2d(x, weight[index])
        for y in outputs:
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An implementation that was added to the table, and what ran of it."""
    ran: list[str] = []

    def recorded(name: str):
        def run(*arguments):
            ran.append(name)
            return getattr(GROUPED, name)(*arguments)

        return run

    def why_not(problem) -> str | None:
        return "it knows no depthwise layers" if problem.depthwise else None

    added = Implementation("mine", why_not, recorded("forward"), recorded("backward"))
    monkeypatch.setitem(TABLE, added.name, added)
    monkeypatch.setattr(plan_cache, "_plans", {})
    return ran


def test_a_record_in_the_table_is_all_that_an_implementation_needs(mine: list[str]) -> None:
    layer = CondConv2d(8, 6, 3, num_experts=3, impl="mine")
    y = layer(X)
    y.sum().backward()
    assert mine == ["forward", "backward"]
    assert layer.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(layer(X), y)
    assert mine == ["forward", "backward", "forward"]
    compiled: Tensor = torch.compile(layer, backend="eager", fullgraph=True)(X)
    torch.testing.assert_close(compiled, y)
    with pytest.raises(UsageError, match="`impl` must be able to run this call, got 'mine': it knows no depthwise"):
        cond_conv2d(X, W[:, :, :1].repeat(1, 4, 1, 1, 1)[:, :8], R, groups=8, impl="mine")
    with pytest.raises(UsageError, match="`impl` must be one of auto, reference, .*, triton, mine, got 'yours'"):
        CondConv2d(8, 6, 3, impl="yours")


@pytest.mark.parametrize("name", TABLE)
def test_the_documentation_names_each(name: str) -> None:
    assert f'`"{name}"`' in str(cond_conv2d.__doc__)
