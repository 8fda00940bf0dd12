"""Plans are looked up: what a call depends on must be in the key, and what watches must still see the operator."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from condconv.errors import UsageError
from condconv.ops import cond_conv2d, plan_cache
from condconv.ops.call_plan import CallPlan, make_plan
from condconv.ops.implementation import Implementation
from condconv.ops.native import library

NATIVE = pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler")
DRAWN = torch.Generator().manual_seed(0)
X = torch.randn(2, 4, 5, 5, generator=DRAWN)
W = torch.randn(3, 6, 4, 3, 3, generator=DRAWN)
R = torch.rand(2, 3, generator=DRAWN)


@pytest.fixture(autouse=True)
def _no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "_plans", {})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[CallPlan]:
    """The plans that are made, not looked up."""
    found: list[CallPlan] = []

    def recorded(*arguments):
        found.append(make_plan(*arguments))
        return found[-1]

    monkeypatch.setattr(plan_cache, "make_plan", recorded)
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
        lambda: cond_conv2d(X, W[..., :1, :1], R, padding=1),
        lambda: cond_conv2d(X, W[:2], R[:, :2], padding=1),
        lambda: cond_conv2d(X, W, R.double(), padding=1),
        lambda: cond_conv2d(X, W.bfloat16(), R, padding=1),
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
    with pytest.raises(UsageError, match="`weight` must have the dtype of x"):
        cond_conv2d(X, W.double(), R, padding=1)
    with pytest.raises(UsageError, match=r"`x` must be a torch.Tensor, got list"):
        cond_conv2d(X.tolist(), W, R, padding=1)
    with pytest.raises(UsageError, match=r"`weight` must be a torch.Tensor, got ndarray"):
        cond_conv2d(X, W.numpy(), R, padding=1)


def test_no_grad_autocast_dtypes_scales_and_the_library_are_told_apart(made, monkeypatch):
    weight = W.clone().requires_grad_()
    cond_conv2d(X, weight, R)
    with torch.no_grad():
        cond_conv2d(X, weight, R)
    assert [each.silent for each in made] == [False, True]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert cond_conv2d(X, W, R).dtype == dtype
    cond_conv2d(X, W.to(torch.int8), R, weight_scale=torch.ones(3, 6))
    with pytest.raises(UsageError, match="`weight_scale` must be given"):
        cond_conv2d(X, W.to(torch.int8), R)
    before = len(made)
    monkeypatch.setattr(library, "WHY_NOT", "left out by this test")
    cond_conv2d(X, W.to(torch.int8), R, weight_scale=torch.ones(3, 6))
    assert len(made) == before + 1
    assert made[-1].implementation.name != "native"


def test_what_is_equal_is_not_taken_for_the_same(made):
    """1, 1.0 and True are equal, and have one hash."""
    expected = cond_conv2d(X, W, R, padding=1, groups=1)
    torch.testing.assert_close(cond_conv2d(X, W, R, padding=True, impl="loop"), expected)
    torch.testing.assert_close(cond_conv2d(X, W, R, padding=1, impl="loop"), expected)
    for wrong in ({"stride": 1.0}, {"stride": (1.0, 1)}, {"padding": 1.0}, {"dilation": 1.0}):
        with pytest.raises(UsageError, match=f"^`{next(iter(wrong))}`"):
            cond_conv2d(X, W, R, **{"padding": 1, **wrong})
    torch.testing.assert_close(cond_conv2d(X, W, R, stride=[1, 1], padding=[1, 1]), expected)


def test_plans_do_not_fill_the_memory(monkeypatch, made):
    monkeypatch.setattr(plan_cache, "_MOST_PLANS", 3)
    for size in range(3, 10):
        cond_conv2d(torch.randn(1, 4, size, size), W, R[:1])
    assert len(made) == 7
    assert 1 <= len(plan_cache._plans) <= 3


@pytest.fixture
def directly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The implementations that run without the registered operator."""
    found: list[str] = []
    bind = Implementation.bind

    def recorded_bind(self, x, weight, *rest):
        runner = bind(self, x, weight, *rest)
        if self.backward is None:  # it has no operator
            return runner
        name = self.name if weight.is_floating_point() else f"quantized {self.name}"

        def recorded(*tensors):
            found.append(name)
            return runner(*tensors)

        return recorded

    monkeypatch.setattr(Implementation, "bind", recorded_bind)
    return found


IMPL = "loop"


def test_nothing_watches_so_that_it_runs_directly(directly):
    expected = cond_conv2d(X, W, R, impl="reference")
    with torch.no_grad():
        torch.testing.assert_close(cond_conv2d(X, W, R, impl=IMPL), expected)
    with torch.inference_mode():
        cond_conv2d(X, torch.nn.Parameter(W), R, impl=IMPL)
    assert directly == [IMPL, IMPL]


@NATIVE
def test_compiled_kernels_run_directly_too(directly):
    scale = torch.rand(3, 6)
    with torch.no_grad():
        expected = cond_conv2d(X, W, R, impl="reference")
        torch.testing.assert_close(cond_conv2d(X, W, R, impl="native"), expected)
        cond_conv2d(X, W.to(torch.int8), R, weight_scale=scale, impl="native")
        with FlopCounterMode(display=False) as counter:
            cond_conv2d(X, W.to(torch.int8), R, weight_scale=scale, impl="native")
    assert directly == ["native", "quantized native"]
    assert counter.get_total_flops() > 0


@NATIVE
@pytest.mark.parametrize("training", [False, True])
def test_defaults_of_torch_do_not_reach_the_kernels(training):
    weight = W.clone().requires_grad_(training)
    expected = cond_conv2d(X, W, R, impl="reference")
    try:
        torch.set_default_dtype(torch.float64)
        y = cond_conv2d(X, weight, R, impl="native")
        if training:
            y.sum().backward()
            assert weight.grad is not None
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(y.detach(), expected)
    with torch.device("meta"):
        torch.testing.assert_close(cond_conv2d(X, weight, R, impl="native").detach(), expected)


@NATIVE
def test_numbers_whose_sign_is_to_be_turned():
    turned = torch.view_as_complex(torch.stack((R, R), -1)).conj().imag
    assert turned.is_neg()
    with torch.no_grad():
        expected = cond_conv2d(X, W, -R, impl="reference")
        torch.testing.assert_close(cond_conv2d(X, W, turned, impl="native"), expected)
        zeros = torch._efficientzerotensor((2, 3))
        assert not cond_conv2d(X, W, zeros, impl="native").any()


def test_a_padded_batch_of_single_examples_under_vmap():
    x = X.contiguous(memory_format=torch.channels_last)
    expected = cond_conv2d(x, W, R, padding="tf_same", stride=2)
    mapped = torch.func.vmap(lambda one, r: cond_conv2d(one[None], W, r[None], padding="tf_same", stride=2)[0])(x, R)
    torch.testing.assert_close(mapped, expected)


def test_padding_keeps_the_layout():
    x = X.contiguous(memory_format=torch.channels_last)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        y = cond_conv2d(x, W, R, padding=1, padding_mode=mode)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_gradients_and_empty_batches_go_through_the_operator(directly):
    cond_conv2d(X, W.clone().requires_grad_(), R, impl=IMPL).sum().backward()
    assert cond_conv2d(X[:0], W, R[:0], impl=IMPL).shape == (0, 6, 3, 3)
    assert directly == []


class Own(Tensor):
    """A subclass, as distributed and quantized tensors are."""


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.11 says so of every profile
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
        for before in (False, True):
            graph = make_fx(lambda x: cond_conv2d(x, W, R, impl=impl), pre_dispatch=before)(X)
            assert "condconv.mixed_conv" in graph.code
        cond_conv2d(X.as_subclass(Own), W, R, impl=impl)
    assert directly == []


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_tracer_is_given_a_plan_of_its_own(made):
    expected = cond_conv2d(X, W, R)
    traced = torch.jit.trace(lambda x: cond_conv2d(x, W, R), (X,), check_trace=False)
    torch.testing.assert_close(traced(X), expected)
    torch.testing.assert_close(cond_conv2d(X, W, R), expected)
    assert [each.plain for each in made] == [False, True]


def test_numbers_of_numpy_and_torch_are_looked_up_as_ints(made):
    plain = {"stride": 2, "padding": (1, 2), "dilation": 1, "groups": 1, "padding_mode": "circular", "impl": "matmul"}
    expected = cond_conv2d(X, W, R, **plain)
    others = {
        "stride": np.int64(2),
        "padding": (np.int8(1), np.uint16(2)),
        "dilation": True,
        "groups": np.int32(1),
        "padding_mode": np.str_("circular"),
        "impl": np.str_("matmul"),
    }
    for _ in range(2):
        torch.testing.assert_close(cond_conv2d(X, W, R, **others), expected, rtol=0, atol=0)
        for sequence in (torch.Size((1, 2)), [1, 2], range(1, 3)):
            torch.testing.assert_close(
                cond_conv2d(X, W, R, **(plain | {"padding": sequence})), expected, rtol=0, atol=0
            )
    assert len(made) == 1
    assert all(type(number) is int for number in (*made[0].geometry.stride, made[0].geometry.groups))


def test_bytes_that_a_number_consists_of_are_not_that_number():
    """`marshal` writes numpy's numbers as their bytes."""
    for value in (np.int64(2).tobytes(), np.float64(1e-323), np.array(2), np.array([2, 2])):
        cond_conv2d(X, W, R, stride=np.int64(2))
        with pytest.raises(UsageError, match="`stride` must be an int"):
            cond_conv2d(X, W, R, stride=value)


@pytest.mark.parametrize("groups", [4, np.int64(4)])
def test_groups_of_any_integer_type_reach_the_compiled_kernels(groups, monkeypatch):
    monkeypatch.setattr(plan_cache, "_plans", {})
    library.convolution.cache_clear()  # else what ran before decides
    x, weight = X.to(memory_format=torch.channels_last), W[:, :4, :1]
    expected = cond_conv2d(x, weight, R, groups=4, impl="reference")
    torch.testing.assert_close(cond_conv2d(x, weight, R, groups=groups), expected)
