"""Plans are looked up: what a call depends on must be in the key, and what watches must still see the operator."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from condconv.ops import api, cond_conv2d, plan, recompute
from condconv.ops.native import library

NATIVE = pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler")
X = torch.randn(2, 4, 5, 5)
W = torch.randn(3, 6, 4, 3, 3)
R = torch.rand(2, 3)


@pytest.fixture(autouse=True)
def _no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_plans", {})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[plan.Plan]:
    """The plans that are made, not looked up."""
    found: list[plan.Plan] = []
    make = plan._make_plan

    def recorded(*arguments):
        found.append(make(*arguments))
        return found[-1]

    monkeypatch.setattr(plan, "_make_plan", recorded)
    return found


def test_a_plan_is_made_once_for_calls_that_look_the_same(made):
    for _ in range(3):
        cond_conv2d(X, W, R, padding=1)
        cond_conv2d(X.clone(), W.clone(), R, padding=1)
    assert len(made) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: cond_conv2d(X[:1], W, R[:1], padding=1),
        lambda: cond_conv2d(X.contiguous(memory_format=torch.channels_last), W, R, padding=1),
        lambda: cond_conv2d(X.double(), W.double(), R, padding=1),
        lambda: cond_conv2d(X, W, R, padding="tf_same"),
        lambda: cond_conv2d(X, W, R, padding=1, padding_mode="circular"),
        lambda: cond_conv2d(X, W, R, padding=1, impl="matmul"),
        lambda: cond_conv2d(X, W, R, torch.randn(3, 6), padding=1),
        lambda: cond_conv2d(X, W.clone().requires_grad_(), R, padding=1),
        lambda: torch.func.vmap(lambda x, r: cond_conv2d(x[None], W, r[None], padding=1))(X, R),
    ],
)
def test_what_a_plan_depends_on_tells_calls_apart(made, call):
    cond_conv2d(X, W, R, padding=1)
    call()
    assert len(made) == 2


def test_autocast_and_what_is_wrong_are_told_apart_too(made):
    cond_conv2d(X, W, R, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert cond_conv2d(X, W, R, padding=1).dtype == torch.bfloat16
    assert len(made) == 2
    with pytest.raises(TypeError, match="weight must have the dtype of x"):
        cond_conv2d(X, W.double(), R, padding=1)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        cond_conv2d(X.tolist(), W, R, padding=1)
    with pytest.raises(TypeError, match=r"weight must be a torch.Tensor, got ndarray"):
        cond_conv2d(X, W.numpy(), R, padding=1)


def test_lists_are_taken_and_not_looked_up(made):
    for _ in range(2):
        cond_conv2d(X, W, R, stride=[1, 1], padding=[1, 1])
    assert len(made) == 2
    assert not plan._plans


def test_plans_do_not_fill_the_memory(monkeypatch, made):
    monkeypatch.setattr(plan, "_MOST_PLANS", 3)
    for size in range(3, 10):
        cond_conv2d(torch.randn(1, 4, size, size), W, R[:1])
    assert len(made) == 7
    assert 1 <= len(plan._plans) <= 3


@pytest.fixture
def directly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The implementations that run without the registered operator."""
    found: list[str] = []

    def recorded(*arguments):
        found.append(arguments[-1])
        return recompute.forward(*arguments)

    monkeypatch.setattr(api, "recompute", SimpleNamespace(forward=recorded))  # the operator calls its own
    return found


IMPL = "per_example"


def test_nothing_watches_so_that_it_runs_directly(directly):
    expected = cond_conv2d(X, W, R, impl="reference")
    with torch.no_grad():
        torch.testing.assert_close(cond_conv2d(X, W, R, impl=IMPL), expected)
    with torch.inference_mode():
        cond_conv2d(X, torch.nn.Parameter(W), R, impl=IMPL)
    assert directly == [IMPL, IMPL]


def test_gradients_and_empty_batches_go_through_the_operator(directly):
    cond_conv2d(X, W.clone().requires_grad_(), R, impl=IMPL).sum().backward()
    assert cond_conv2d(X[:0], W, R[:0], impl=IMPL).shape == (0, 6, 3, 3)
    assert directly == []


class Own(Tensor):
    """A subclass, as distributed and quantized tensors are."""


@pytest.mark.parametrize("impl", [IMPL, pytest.param("native", marks=NATIVE)])
def test_what_watches_sees_the_operator(directly, impl):
    def call() -> Tensor:
        return cond_conv2d(X, W, R, impl=impl)

    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() > 0
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            call()
        assert "condconv::mixed_conv" in {event.name for event in profiler.events()}
        assert "condconv.mixed_conv" in make_fx(lambda x: cond_conv2d(x, W, R, impl=impl))(X).code
        cond_conv2d(X.as_subclass(Own), W, R, impl=impl)
    assert directly == []


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_tracer_sees_the_operator(directly):
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: cond_conv2d(x, W, R, impl=IMPL), (X,), check_trace=False)
        other = torch.randn_like(X)
        torch.testing.assert_close(traced(other), cond_conv2d(other, W, R, impl="reference"))
    assert directly == []
