"""The registered operator: its contract with torch, its derivatives, what it keeps, what it counts."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from condconv.errors import UsageError
from condconv.ops import cond_conv2d, cond_conv_transpose2d
from condconv.ops.native import library
from tests.ops.cases import BY_NAME

IMPLS = ("grouped", "matmul", "loop")
NATIVE = pytest.param("native", marks=pytest.mark.skipif(library.LOADED is None, reason="built without a C compiler"))
GEOMETRY = ((1, 1), (1, 1), (1, 1), 2, False, ())
TRANSPOSED = ((2, 1), (1, 1), (1, 1), 2, True, (1, 0))


def tensors(transposed: bool = False) -> list[torch.Tensor]:
    out_channels = 4 if transposed else 6
    shapes = [(2, 4, 5, 5), (3, 4, 2, 3, 3) if transposed else (3, 6, 2, 3, 3), (2, 3), (3, out_channels)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
@pytest.mark.parametrize("size", [1, 3])
def test_an_activation_may_overwrite_the_output(impl: str, size: int) -> None:
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(3, 5, 8, size, size, requires_grad=True)
    routing = torch.rand(2, 3)
    output = torch.relu_(cond_conv2d(x, weight, routing, impl=impl))
    output.square().sum().backward()
    gradient, weight.grad = weight.grad, None
    torch.relu(cond_conv2d(x, weight, routing, impl="reference")).square().sum().backward()
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-4)


# opcheck itself reads .grad of copies it made of the inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("geometry", [GEOMETRY, TRANSPOSED], ids=["conv", "transpose"])
def test_opcheck(geometry, impl: str) -> None:
    x, weight, routing, bias = tensors(geometry[4])
    opcheck(torch.ops.condconv.mixed_conv, (x, weight, routing, bias, *geometry, impl))
    channels_last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    opcheck(torch.ops.condconv.mixed_conv, (channels_last, weight, routing, None, *geometry, impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("needs", [[True] * 4, [False, True, False, True], [True, False, True, False]])
def test_opcheck_backward(needs: list[bool], impl: str) -> None:
    x, weight, routing, bias = tensors()
    grad_output = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    arguments = (grad_output, x, weight, routing, bias, *GEOMETRY, impl, needs)
    # Nothing is differentiated twice here: that is what gradgradcheck below is for.
    opcheck(
        torch.ops.condconv.mixed_conv_backward, [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "name", ["pointwise-grouped", "dense2-same-even", "depthwise-pointwise", "transpose2d-pointwise"]
)
def test_gradcheck_and_gradgradcheck(name: str, impl: str) -> None:
    case = BY_NAME[name]
    inputs = tuple(case.tensors())

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        return case.op(*arguments, impl=impl, **case.options)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
@pytest.mark.parametrize("name", ["pointwise", "dense3", "depthwise3"])
def test_backward_keeps_the_inputs_only(name: str, impl: str) -> None:
    """Kept kernels would be `[B, O, C/G, *K]`; what is saved must be the four inputs themselves."""
    case = BY_NAME[name]
    inputs = case.tensors()
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case.op(*inputs, impl=impl, **case.options)
    assert saved
    assert set(saved) <= {tensor.untyped_storage().data_ptr() for tensor in inputs}


def test_third_derivatives_are_refused_not_wrong() -> None:
    x, weight, routing, _ = tensors()
    for impl, allowed in (("grouped", False), ("reference", True)):
        y = cond_conv2d(x, weight, routing, padding=1, groups=2, impl=impl).pow(3).sum()
        (first,) = torch.autograd.grad(y, routing, create_graph=True)
        if allowed:
            (second,) = torch.autograd.grad(first.pow(2).sum(), routing, create_graph=True)
            assert torch.autograd.grad(second.sum(), weight)[0].isfinite().all()
        else:
            with pytest.raises(
                UsageError, match="`impl` must be 'reference' or .* for third derivatives, got 'grouped': name"
            ):
                torch.autograd.grad(first.pow(2).sum(), routing, create_graph=True)


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_forward_mode_outside_transforms(impl: str) -> None:
    x, weight, routing, _ = (tensor.detach() for tensor in tensors())
    direction = torch.randn_like(routing)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(routing, direction)
        y = cond_conv2d(x, weight, dual, padding=1, groups=2, impl=impl)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, cond_conv2d(x, weight, direction, padding=1, groups=2))


@pytest.mark.parametrize("impl", ["reference", "mix_outputs", *IMPLS])
def test_backward_inside_autocast_equals_backward_outside(impl: str) -> None:
    """Autocast on during backward must not round the mixing, which is done in fp32."""
    grads = []
    for inside in (True, False):
        torch.manual_seed(0)
        leaves = [tensor.detach().float().requires_grad_() for tensor in tensors()]
        with torch.autocast("cpu", torch.bfloat16):
            y = cond_conv2d(*leaves, padding=1, groups=2, impl=impl).float().square().sum()
            if inside:
                y.backward()
        if not inside:
            y.backward()
        grads.append([leaf.grad for leaf in leaves])
    if impl in IMPLS:
        torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    else:
        # Theirs is torch's own convolution in bf16, rounded where the machine's kernels round: a few units of the
        # largest number's last place.
        for inner, outer in zip(*grads, strict=True):
            assert (inner - outer).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * outer.abs().max()


def test_fp64_stays_fp64_under_autocast() -> None:
    arguments = [tensor.detach() for tensor in tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        y = cond_conv2d(*arguments, padding=1, groups=2)
    assert y.dtype == torch.float64


def test_gradients_of_half_precision_experts_are_added_up_in_fp32() -> None:
    """256 examples that add 1 each: in bf16 the sum would stop at 256 less than it should, or stick."""
    x, weight = torch.ones(513, 1, 1, 1).bfloat16(), torch.zeros(2, 1, 1, 1, 1).bfloat16().requires_grad_()
    cond_conv2d(x, weight, torch.ones(513, 2), impl="loop").sum().backward()
    assert weight.grad.flatten().tolist() == [512.0, 512.0]  # 513 rounded to bf16, once


def test_flops_are_twice_the_multiply_adds_worked_by_hand() -> None:
    x, weight, routing = torch.randn(3, 4, 7, 6), torch.randn(5, 6, 4, 3, 3), torch.rand(3, 5)
    for impl in IMPLS:
        with FlopCounterMode(display=False) as counter:
            cond_conv2d(x, weight, routing, padding=1, impl=impl)
        # P = 6*4*9 = 216 kernel parameters; 3 examples x (42 pixels + 5 experts) x 216
        assert counter.get_total_flops() == 2 * 3 * (42 + 5) * 216


def test_flops_of_backward_worked_by_hand() -> None:
    tensors = [torch.randn(3, 4, 7, 6), torch.randn(5, 6, 4, 3, 3), torch.rand(3, 5), torch.randn(5, 6)]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with FlopCounterMode(display=False) as counter:
        cond_conv2d(*leaves, padding=1, impl="grouped").sum().backward()
    convolution, mixing = 3 * 42 * 216, 3 * 5 * (216 + 6)
    # Forward: one of each. Backward: two convolutions; kernels mixed again, experts' and routing gradients.
    assert counter.get_total_flops() == 2 * (3 * convolution + 4 * mixing)


def test_flops_of_backward_leave_out_what_is_not_needed() -> None:
    x, weight, routing = torch.randn(3, 4, 7, 6), torch.randn(5, 6, 4, 3, 3), torch.rand(3, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        cond_conv2d(x, weight, routing, padding=1, impl="grouped").sum().backward()
    convolution, mixing = 3 * 42 * 216, 3 * 5 * 216
    # Forward: one of each. Backward: the kernels' gradient, kernels mixed again, the routing's gradient.
    assert counter.get_total_flops() == 2 * (2 * convolution + 3 * mixing)


def test_flops_of_a_transposed_convolution_count_input_pixels() -> None:
    x, weight, routing = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 6, 2, 2), torch.rand(2, 3)
    with FlopCounterMode(display=False) as counter:
        cond_conv_transpose2d(x, weight, routing, stride=2, impl="grouped")
    assert counter.get_total_flops() == 2 * 2 * (30 + 3) * 96


ONE_PIXEL = [
    ((2, 4, 5, 5), (3, 6, 4, 5, 5), {}),
    ((2, 4, 1, 1), (3, 6, 4, 1, 1), {}),
    ((1, 4, 3, 3), (3, 4, 1, 3, 3), {"groups": 4}),
    ((1, 4, 5, 5), (3, 6, 4, 3, 3), {}),
    ((2, 1, 1, 7), (3, 1, 1, 1, 1), {}),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every second"])
@pytest.mark.parametrize(("x", "weight", "options"), ONE_PIXEL)
@pytest.mark.parametrize("impl", [*IMPLS, NATIVE])
def test_fakes_promise_the_strides_of_maps_of_one_pixel(impl: str, x, weight, options, layout: str) -> None:
    tensor, routing = torch.randn(*x[:-1], 2 * x[-1])[..., ::2], torch.rand(x[0], 3)
    if layout != "every second":
        tensor = tensor.clone(memory_format=getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))
    experts = torch.randn(weight)
    found = []
    for mode in (nullcontext(), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode as fake:
            given = (
                [tensor, experts, routing]
                if fake is None
                else [fake.from_tensor(t) for t in (tensor, experts, routing)]
            )
            silent = cond_conv2d(*given, impl=impl, **options)
            leaf = given[0].detach().requires_grad_()
            y = cond_conv2d(leaf, *given[1:], impl=impl, **options)
            (grad,) = torch.autograd.grad(y.sum(), leaf)
            found.append((silent.stride(), y.stride(), grad.stride()))
    assert found[0] == found[1]
