"""The layers: their twins' arguments and behaviour, starting values, conversion from and to static layers."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import condconv
from condconv import CondConv2d, CondLinear
from condconv.errors import UsageError
from condconv.nn import (
    CONDITIONAL_CLASSES,
    ROUTING,
    ConditionalLayer,
    SigmoidRouting,
    TFSameConv2d,
    fold_batch_norm,
    init_experts_,
    spread_experts,
)

CONVS: dict[type[nn.Module], tuple[tuple, tuple]] = {
    nn.Conv1d: ((4, 6, 3), (2, 4, 11)),
    nn.Conv2d: ((4, 6, 3), (2, 4, 9, 8)),
    nn.Conv3d: ((4, 6, 3), (2, 4, 5, 6, 5)),
    nn.ConvTranspose1d: ((4, 6, 3), (2, 4, 11)),
    nn.ConvTranspose2d: ((4, 6, 3), (2, 4, 7, 8)),
    nn.ConvTranspose3d: ((4, 6, 3), (2, 4, 4, 5, 4)),
    nn.Linear: ((5, 6), (2, 3, 5)),
}
OPTIONS: list[dict] = [{}, {"bias": False}, {"stride": 2, "padding": 1, "groups": 2}, {"dilation": 2, "padding": 2}]


def pairs() -> list:
    return [
        pytest.param(twin, options, id=f"{twin.__name__}-{index}")
        for twin in CONVS
        for index, options in enumerate(OPTIONS)
        if twin is not nn.Linear or set(options) <= {"bias"}
    ]


@pytest.mark.parametrize("twin", CONVS)
def test_arguments_are_the_twins_in_the_same_order(twin: type[nn.Module]) -> None:
    theirs = list(inspect.signature(twin.__init__).parameters.values())
    ours = list(inspect.signature(CONDITIONAL_CLASSES[twin].__init__).parameters.values())
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == [p.name for p in theirs]
    assert [p.default for p in positional] == [p.default for p in theirs]
    own = ["num_experts", "routing", "experts", "method", "impl"]
    assert [p.name for p in ours if p.kind is p.KEYWORD_ONLY] == own


@pytest.mark.parametrize(("twin", "options"), pairs())
def test_from_static_computes_the_same(twin: type[nn.Module], options: dict) -> None:
    arguments, shape = CONVS[twin]
    static = twin(*arguments, **options, dtype=torch.float64)
    layer = CONDITIONAL_CLASSES[twin].from_static(static, 5)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), static(x))
    spread = layer.experts.weight.std(0).mean() / layer.experts.weight.abs().mean()
    assert 0.2 < spread < 1.5


@pytest.mark.parametrize(("twin", "options"), pairs())
def test_to_static_gives_the_twin(twin: type[nn.Module], options: dict) -> None:
    arguments, shape = CONVS[twin]
    layer = CONDITIONAL_CLASSES[twin](*arguments, **options, num_experts=3, dtype=torch.float64).eval()
    weights = torch.rand(3, dtype=torch.float64)
    static = layer.to_static(weights)
    assert type(static) is twin
    assert not static.training
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(static(x), layer(x, weights.expand(2, -1)))


@pytest.mark.parametrize("routing", [name for name in ROUTING if name != "external"])
def test_from_conv_with_every_routing(routing: str) -> None:
    static, x = nn.Conv2d(4, 6, 3), torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(CondConv2d.from_conv(static, 4, routing=routing)(x), static(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 0)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_padding_as_the_twin(padding, mode: str) -> None:
    static, x = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode), torch.randn(2, 3, 7, 8)
    layer = CondConv2d.from_conv(static, 3)
    torch.testing.assert_close(layer(x), static(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.to_static(layer.routing_fn(x)[0])(x), static(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_tf_same_round_trip(stride: int) -> None:
    layer = CondConv2d(3, 4, 3, stride, padding="tf_same", num_experts=2)
    weights, x = torch.tensor([0.25, 0.75]), torch.randn(2, 3, 8, 7)
    static = layer.to_static(weights)
    assert isinstance(static, TFSameConv2d if stride == 2 else nn.Conv2d)
    torch.testing.assert_close(static(x), layer(x, weights.expand(2, -1)))
    if stride == 2:
        assert CondConv2d.from_conv(static, 3).padding == "tf_same"


def test_from_conv_keeps_what_the_conv_had() -> None:
    static = nn.Conv2d(4, 6, 3, dtype=torch.float64).eval().to(memory_format=torch.channels_last)
    static.weight.requires_grad_(False)
    layer = CondConv2d.from_conv(static, 4)
    assert layer.experts.weight.dtype == torch.float64
    assert not layer.training
    assert not layer.experts.weight.requires_grad
    assert layer.experts.bias.requires_grad
    assert layer.experts.weight[0].is_contiguous(memory_format=torch.channels_last)
    assert layer.routing_fn.fc.weight.dtype == torch.float64


def test_from_static_keeps_the_layout_of_three_dimensions() -> None:
    static = nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d)
    assert (
        condconv.CondConv3d.from_static(static, 2).experts.weight[0].is_contiguous(memory_format=torch.channels_last_3d)
    )


def test_meta_device() -> None:
    static = nn.Conv2d(4, 6, 3, device="meta")
    made = (CondConv2d.from_conv(static, init=init) for init in ("random", "same_output"))
    for layer in (CondConv2d(4, 6, 3, device="meta"), *made):
        assert layer.experts.weight.device.type == "meta"
        assert layer(torch.zeros(2, 4, 5, 5, device="meta")).shape == (2, 6, 3, 3)


@pytest.mark.parametrize("routing", list(ROUTING))
def test_values_for_a_layer_made_on_the_meta_device_are_loaded(routing: str) -> None:
    trained = CondConv2d.from_conv(nn.Conv2d(4, 6, 3), 3, routing=routing)
    layer = CondConv2d.from_conv(nn.Conv2d(4, 6, 3, device="meta"), 3, routing=routing)
    layer.load_state_dict(trained.state_dict(), assign=True)
    weights = [torch.rand(2, 3)] if routing == "external" else []
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(layer(x, *weights), trained(x, *weights))


def test_experts_learn_to_differ_and_the_router_learns() -> None:
    layer = CondConv2d.from_conv(nn.Conv2d(3, 4, 1), 4)
    layer(torch.randn(5, 3, 4, 4)).square().sum().backward()
    grads = layer.routing_fn.fc.weight.grad
    assert grads.abs().min() > 0
    assert (grads - grads.mean(0)).abs().max() > 1e-3 * grads.abs().max()


def test_random_start_draws_each_expert() -> None:
    static = nn.Conv2d(16, 64, 3)
    layer = CondConv2d.from_conv(static, 4, init="random", experts="dense")
    torch.testing.assert_close(layer.experts.weight.std((1, 2, 3, 4)), static.weight.std().expand(4), rtol=0.05, atol=0)
    flat = layer.experts.weight.flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(4)
    assert correlation.abs().max() < 0.05  # 9216 entries: five standard deviations are 0.052
    assert layer.routing_fn.fc.weight.abs().max() > 0


def test_experts_start_with_the_fans_of_one_expert() -> None:
    """torch's bound for a convolution is 1 / sqrt(fan_in); on the stack it would be another."""
    layer = CondConv2d(16, 32, 3, num_experts=8)
    bound = 1 / math.sqrt(16 * 9)
    for expert, bias in zip(layer.experts.weight, layer.experts.bias, strict=True):
        assert 0.98 * bound < expert.abs().max() <= bound
        assert 0.5 * bound < bias.abs().max() <= bound
    assert not torch.equal(layer.experts.weight[0], layer.experts.weight[1])


def test_init_experts_takes_no_bias() -> None:
    weight = torch.zeros(2, 3, 4)
    init_experts_(weight, None)
    assert weight.abs().min() > 0


@pytest.mark.parametrize("twin", CONVS)
def test_to_channels_last_lays_out_each_expert(twin: type[nn.Module]) -> None:
    arguments, shape = CONVS[twin]
    layer = CONDITIONAL_CLASSES[twin](*arguments, num_experts=3)
    x = torch.randn(shape)
    before, expected = layer.experts.weight.detach().clone(), layer(x)
    # torch refuses channels_last for the five dimensions of a 3-D kernel, conditional or not.
    three = twin in (nn.Conv3d, nn.ConvTranspose3d)
    layout = torch.channels_last_3d if three else torch.channels_last
    model = nn.Sequential(layer).to(memory_format=layout)
    assert torch.equal(layer.experts.weight, before)
    if three or twin in (nn.Conv2d, nn.ConvTranspose2d):
        assert layer.experts.weight[0].is_contiguous(memory_format=layout)
        x = x.to(memory_format=layout)
    torch.testing.assert_close(model(x), expected)
    layer.experts.weight.grad = torch.ones_like(layer.experts.weight)
    assert model.double()[0].experts.weight.grad.dtype == torch.float64


def test_casts_reach_experts_and_routing() -> None:
    layer = CondConv2d(4, 6, 3).bfloat16()
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert layer(torch.randn(2, 4, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.to_empty(device="meta").experts.weight.shape == (8, 6, 4, 3, 3)


def test_state_dict_has_experts_bias_and_routing() -> None:
    names = ["experts.weight", "experts.bias", "routing_fn.fc.weight", "routing_fn.fc.bias"]
    assert list(CondConv2d(4, 6, 3).state_dict()) == names


def test_repr_names_the_experts() -> None:
    text = repr(CondConv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, padding_mode="reflect"))
    assert "4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, bias=False" in text
    assert "padding_mode=reflect, num_experts=8" in text


def test_linear_takes_rows() -> None:
    layer = CondLinear(5, 6, num_experts=3)
    x = torch.randn(2, 4, 3, 5)
    weights = layer.routing_fn(x.mean((1, 2)))
    torch.testing.assert_close(layer(x), layer(x, weights))
    torch.testing.assert_close(layer(x)[:, 1, 2], layer(x[:, 1, 2], weights))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("twin", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear])
def test_fold_batch_norm_is_exact_for_every_routing(twin: type[nn.Module], bias: bool, affine: bool) -> None:
    arguments, shape = CONVS[twin]
    options = {} if twin is nn.Linear else {"groups": 2}
    make: Any = CONDITIONAL_CLASSES[twin]
    layer = make(*arguments, **options, bias=bias, num_experts=3, dtype=torch.float64)
    norms = {nn.Conv2d: nn.BatchNorm2d, nn.ConvTranspose2d: nn.BatchNorm2d}
    norm = norms.get(twin, nn.BatchNorm1d)(6, affine=affine, dtype=torch.float64).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn((2, 5) if twin is nn.Linear else shape, dtype=torch.float64)
    folded = fold_batch_norm(layer, norm)
    torch.testing.assert_close(folded(x), norm(layer.eval()(x)))
    again = fold_batch_norm(folded, norm)
    torch.testing.assert_close(again(x), norm(norm(layer(x))))
    weights = torch.rand(3, dtype=torch.float64)
    torch.testing.assert_close(folded.to_static(weights)(x), folded(x, weights.expand(2, -1)))


def test_fold_batch_norm_refuses_what_it_cannot_do() -> None:
    layer = CondConv2d(3, 6, 1)
    with pytest.raises(UsageError, match="`norm` must be a torch.nn.BatchNorm, got LayerNorm: no other norm"):
        fold_batch_norm(layer, nn.LayerNorm(6))
    with pytest.raises(UsageError, match="`norm` must .*, got BatchNorm2d: it has no running statistics"):
        fold_batch_norm(layer, nn.BatchNorm2d(6, track_running_stats=False))
    with pytest.raises(UsageError, match="got BatchNorm2d: it has 5 channels, and the layer 6; give the norm after"):
        fold_batch_norm(layer, nn.BatchNorm2d(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CondConv2d(0, 4, 3), "`in_channels` must be a positive int, got 0"),
        (lambda: CondConv2d(4, 4, 3, num_experts=True), "`num_experts` must be a positive int, got True"),
        (lambda: CondConv2d(4, 4, 3, padding=2)(torch.zeros(1, 4, 0, 9)), "`x` must have a pixel in each spatial"),
        (lambda: CondConv2d(4, 6, 3, groups=4), "`groups` must divide in_channels = 4 and out_channels = 6, got 4"),
        (lambda: CondConv2d(4, 6, 3, num_experts=0), "`num_experts` must be a positive int, got 0"),
        (
            lambda: CondConv2d(4, 6, (3, 3, 3)),
            r"`kernel_size` must be an int or 2 ints, each at least 1 .*, got \(3, 3, 3\)",
        ),
        (lambda: CondConv2d(4, 6, 3, 2, "same"), '`padding` must not be "same" with a stride'),
        (lambda: CondConv2d(4, 6, 3, padding_mode="wrap"), "`padding_mode` must be one of"),
        (
            lambda: condconv.CondConvTranspose2d(4, 6, 3, padding_mode="reflect"),
            "`padding_mode` must be one of zeros, got",
        ),
        (lambda: condconv.CondConvTranspose2d(4, 6, 3, padding="same"), "`padding` must be an int or ints"),
        (lambda: CondLinear(4, 0), "`out_features` must be a positive int, got 0"),
        (lambda: CondConv2d(4, 6, 3)(torch.zeros(4, 5, 5)), r"`x` must have shape \[B, 4, \*, \*\], got .*unsqueeze"),
        (
            lambda: CondConv2d(4, 6, 3)(torch.zeros(2, 3, 5, 5)),
            r"`x` must have shape \[B, 4, \*, \*\], got \(2, 3, 5, 5\)",
        ),
        (lambda: CondLinear(4, 6)(torch.zeros(4)), r"`x` must have shape \[B, ..., 4\], got \(4,\)"),
        (
            lambda: CondConv2d(4, 6, 3).to_static(torch.zeros(2, 8)),
            r"`routing_weights` must have shape \[E\] = \(8,\), got \(2, 8\)",
        ),
        (
            lambda: CondConv2d.from_conv(nn.Conv2d(4, 6, 3), expert_spread=-1),
            "`expert_spread` must be a finite number of at least 0, got -1",
        ),
        (
            lambda: CondConv2d.from_conv(nn.Conv2d(4, 6, 3), init="zeros"),
            "`init` must be 'same_output' or 'random', got 'zeros'",
        ),
    ],
)
def test_bad_values(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types() -> None:
    with pytest.raises(
        UsageError, match="`static` must be a Conv2d, got a torch.*Linear: a Conv2d becomes a CondConv2d"
    ):
        CondConv2d.from_conv(nn.Linear(3, 4))
    with pytest.raises(UsageError, match=r"`routing` must have a method start_constant_\(\)"):
        CondConv2d.from_conv(nn.Conv2d(4, 6, 3), routing=lambda channels, experts: nn.Linear(channels, experts))


def test_fold_batch_norm_refuses_a_norm_that_does_more() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    with pytest.raises(UsageError, match="`norm` must be .* folded, got Activated: it has a forward of its own"):
        fold_batch_norm(CondConv2d(3, 6, 1), Activated(6))


@pytest.mark.parametrize(("spread", "expected"), [(0.5, 0.1), (0.02, 0.02)])
def test_experts_of_a_classifier_start_no_wider_than_torch_would(spread: float, expected: float) -> None:
    static = nn.Linear(100 // 3, 60)  # 1 / sqrt(3 * 33) is a tenth
    with torch.no_grad():
        static.weight.normal_(std=spread)
    layer = CondLinear.from_linear(static, 8, init="random", experts="dense")
    assert layer.experts.weight.std().item() == pytest.approx(expected, rel=0.05)
    kept = CondLinear.from_linear(static, 8, expert_spread=0.0, experts="dense")
    assert torch.equal(kept.experts.weight[0] * 4, static.weight)  # a start that keeps the output keeps its weights


def test_random_start_keeps_layout_and_flags() -> None:
    static = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last).requires_grad_(False)
    layer = CondConv2d.from_conv(static, 4, init="random")
    assert layer.experts.weight[0].is_contiguous(memory_format=torch.channels_last)
    assert not layer.experts.weight.requires_grad
    assert not layer.experts.bias.requires_grad


def test_unknown_impl_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(ValueError, match="`impl` must be one of auto, reference, .* got 'fast'"):
        CondConv2d(4, 6, 3, impl="fast")


def test_does_not_subclass_the_twin() -> None:
    assert not any(issubclass(conditional, twin) for twin, conditional in CONDITIONAL_CLASSES.items())
    assert all(issubclass(conditional, ConditionalLayer) for conditional in CONDITIONAL_CLASSES.values())


def test_per_example_gradients_of_the_layer() -> None:
    from torch.func import functional_call, grad, vmap

    layer = CondConv2d(3, 4, 3, num_experts=2)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    x = torch.randn(3, 3, 6, 6)
    batched = vmap(grad(lambda p, e: functional_call(layer, p, (e[None],)).sum()), in_dims=(None, 0))(parameters, x)
    layer(x).sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(batched[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-4)


def test_deepcopy_is_independent() -> None:
    layer = CondConv2d(3, 4, 3, routing=SigmoidRouting(3, 8))
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.experts.weight.zero_()
    assert layer.experts.weight.abs().sum() > 0


def test_a_twin_with_a_forward_of_its_own_is_refused() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(UsageError, match=r"`static` must be .*: it is a .*\.Doubled with a forward of its own"):
        condconv.CondConv2d.from_conv(Doubled(3, 4, 3))


def test_a_layer_of_timm_s_that_pads_as_tensorflow_keeps_its_padding() -> None:
    static = pytest.importorskip("timm.layers").Conv2dSame(3, 4, 3, stride=2)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(condconv.CondConv2d.from_conv(static, num_experts=3)(x), static(x))


def test_linear_outputs_are_contiguous_as_torchs_are() -> None:
    for layer, x in (
        (CondLinear(6, 8, num_experts=3), torch.randn(2, 6, 5).mT),
        (CondLinear(1, 8, num_experts=3), torch.randn(2, 5, 1)),
    ):
        assert layer(x).is_contiguous()


def test_a_mode_of_padding_that_is_not_looked_at_is_not_taken_over() -> None:
    static = TFSameConv2d(3, 4, 3, 2, padding_mode="reflect")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(CondConv2d.from_conv(static, 3)(x), static(x), rtol=1e-4, atol=1e-5)


def test_experts_that_are_spread_from_a_parameter_are_leaves() -> None:
    experts = spread_experts(nn.Parameter(torch.randn(4, 3)), torch.full((5,), 0.5), 0.5)
    assert not experts.requires_grad


def test_numpy_integers_are_integers() -> None:
    numbers = {"stride": np.int64(2), "padding": np.int64(1), "groups": np.int64(2), "num_experts": np.int64(3)}
    layer = CondConv2d(np.int64(4), np.int64(8), np.int64(3), **numbers)
    assert repr(layer) == repr(CondConv2d(4, 8, 3, 2, 1, groups=2, num_experts=3))
    assert layer(torch.zeros(2, 4, 6, 6)).shape == (2, 8, 3, 3)


def test_parametrized_experts_are_laid_out_as_a_static_kernel() -> None:
    layer = CondConv2d(8, 8, 3, num_experts=2)
    parametrize.register_parametrization(layer.experts, "weight", nn.Identity())
    layer.to(memory_format=torch.channels_last)
    assert layer.experts.weight[0].is_contiguous(memory_format=torch.channels_last)
