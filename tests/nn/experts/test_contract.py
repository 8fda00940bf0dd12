"""What every store of experts must do, for every kind of layer: a new store is a row in `STORES`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import condconv
from condconv.convert.fold import fold_batch_norms_
from condconv.errors import UsageError
from condconv.nn import ConditionalLayer, Experts
from condconv.nn.classes import conditional_class
from condconv.nn.experts import KernelSpec, make_experts, why_not_experts
from condconv.nn.experts.build import written_experts

ALONE = dict.fromkeys(("modulated()", "modulated(taps=True, inputs=True)", "decomposed", "decomposed(rank=3)"), 1)
"""Stores of one kernel, which is not weighed; those that can have several are written in another way below."""
STORES = (
    *("dense", "deltas", "deltas(scale=0.1)"),
    *("shared", "shared(rank=2)", "shared(rank='full', gains=True)", "shared(rank=None, gains=True)"),
    *("shared(outputs=2)", "shared(kernels=2)", "shared(rank=2, gains=True, outputs=3, kernels=1)"),
    "modulated",
    "modulated(inputs=True, taps=True)",
    "modulated(input_blocks=2)",
    *ALONE,
)

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "pointwise": (lambda: nn.Conv2d(8, 6, 1, stride=2), (8, 9, 7)),
    "dense": (lambda: nn.Conv2d(8, 6, 3, padding=1), (8, 9, 7)),
    "reflected": (lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect", bias=False), (8, 6, 7)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2, dilation=2), (8, 9, 7)),
    "depthwise": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8, stride=2), (8, 9, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), (8, 5, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(8, 6, 3, groups=2), (8, 5, 4)),
    "one dimension": (lambda: nn.Conv1d(8, 6, 3), (8, 11)),
    "three dimensions": (lambda: nn.Conv3d(8, 4, 2), (8, 4, 3, 5)),
    "linear": (lambda: nn.Linear(8, 5), (8,)),
    "linear, rows": (lambda: nn.Linear(8, 5, bias=False), (3, 8)),
}


def cases(*kinds: str) -> pytest.MarkDecorator:
    """Return a mark that tries every store with kinds of layers, without those that a layer cannot have."""
    able = [(store, kind) for store in STORES for kind in kinds if why_not_experts(store, KINDS[kind][0]()) is None]
    return pytest.mark.parametrize(("store", "kind"), able)


each_case = cases(*KINDS)
each_store = pytest.mark.parametrize("store", STORES)


def test_which_layers_cannot_have_a_store() -> None:
    refused = {
        store: {kind for kind, (layer, _) in KINDS.items() if why_not_experts(store, layer()) is not None}
        for store in STORES
    }
    grouped = {"grouped", "depthwise", "transposed, grouped"}
    low_rank = ("shared(outputs=2)", "shared(rank=2, gains=True, outputs=3, kernels=1)")
    decomposed = grouped | {"transposed"}
    expected = dict.fromkeys(low_rank, grouped) | {"decomposed": decomposed, "decomposed(rank=3)": decomposed}
    assert {store: kinds for store, kinds in refused.items() if kinds} == expected


def make(store: str, kind: str) -> tuple[nn.Module, ConditionalLayer, Tensor]:
    """Return a static layer, its conditional form with experts that differ, and three examples, all in fp64."""
    torch.manual_seed(0)
    build, shape = KINDS[kind]
    static = build().double()
    layer = conditional_class(static).from_static(static, ALONE.get(store, 3), experts=store)
    return static, layer, torch.randn(3, *shape, dtype=torch.float64)


@each_case
def test_the_start_is_the_static_layer(store: str, kind: str) -> None:
    static, layer, x = make(store, kind)
    torch.testing.assert_close(layer(x), static(x))
    uneven = torch.linspace(0.9, 0.1, layer.experts.num_weights, dtype=torch.float64)
    other = layer(x, uneven.expand(3, -1))
    assert (other - static(x)).abs().max() > 0.01  # the routed part is not nothing


@each_case
def test_a_call_is_what_mix_says_with_all_gradients(store: str, kind: str) -> None:
    static, layer, x = make(store, kind)
    routing_weights = torch.rand(3, layer.experts.num_weights, dtype=torch.float64)
    leaves = [x.requires_grad_(), routing_weights.requires_grad_(), *layer.experts.parameters()]
    y = layer(x, routing_weights)
    kernels, biases = layer.experts.mix(routing_weights)
    named = [{"weight": kernel} for kernel in kernels]
    if biases is not None:
        named = [{**each, "bias": bias} for each, bias in zip(named, biases, strict=True)]
    each_alone = zip(named, x, strict=True)
    expected = torch.cat([torch.func.functional_call(static, own, (one[None],)) for own, one in each_alone])
    torch.testing.assert_close(y, expected)
    toward = torch.randn_like(y)
    gradients = torch.autograd.grad(y, leaves, toward)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, leaves, toward), strict=True):
        torch.testing.assert_close(found, wanted)
        assert wanted.abs().sum() > 0


@each_case
def test_constant_routing_folds_into_a_static_layer(store: str, kind: str) -> None:
    static, layer, x = make(store, kind)
    constant = torch.rand(layer.experts.num_weights, dtype=torch.float64)
    ordinary = layer.to_static(constant)
    assert type(ordinary) is type(static)
    torch.testing.assert_close(ordinary(x), layer(x, constant.expand(3, -1)))


@each_case
def test_outputs_are_scaled_as_a_folded_norm_needs_it(store: str, kind: str) -> None:
    _, layer, x = make(store, kind)
    routing_weights = torch.rand(3, layer.experts.num_weights, dtype=torch.float64)
    scale = torch.rand(layer.experts.spec.out_channels, dtype=torch.float64) + 0.5
    along = scale if kind.startswith("linear") else scale[(..., *(None,) * (x.dim() - 2))]
    expected = layer(x, routing_weights) * along
    layer.experts.scale_outputs_(scale)
    torch.testing.assert_close(layer(x, routing_weights), expected)


@each_case
def test_the_kernel_is_the_sum_over_experts_where_it_is_linear(store: str, kind: str) -> None:
    _, layer, _ = make(store, kind)
    first, second = torch.rand(2, 1, layer.experts.num_weights, dtype=torch.float64)
    at_first, at_second = layer.experts.mix(first)[0], layer.experts.mix(second)[0]
    assert layer.experts.kernels().shape == (layer.num_experts, *layer.experts.spec.shape)
    difference = layer.experts.weights_of_experts(first - second)[0]
    summed = torch.tensordot(difference, layer.experts.kernels().double(), dims=1)
    is_sum = torch.allclose(at_first - at_second, summed[None], atol=1e-5)
    assert is_sum == layer.experts.linear


@each_case
def test_what_it_costs_is_counted(store: str, kind: str) -> None:
    _, layer, x = make(store, kind)
    one, layer.impl = x[:1], "grouped"  # mixes kernels, which is what is counted
    with FlopCounterMode(display=False) as counter:
        layer(one)
    total = condconv.count(layer, one).total
    assert total.params == sum(parameter.numel() for parameter in layer.parameters())
    assert total.madds == counter.get_total_flops() / 2
    assert total.expert_bytes == sum(each.nbytes for each in layer.experts.parameters())


@cases("dense", "depthwise", "linear")
def test_copies_and_state_dicts(store: str, kind: str) -> None:
    _, layer, x = make(store, kind)
    expected = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), expected)
    other = conditional_class(KINDS[kind][0]())
    again = other.from_static(KINDS[kind][0]().double(), layer.num_experts, experts=store)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), expected)


@cases("pointwise", "dense", "depthwise", "transposed")
def test_layouts_and_autocast(store: str, kind: str) -> None:
    _, layer, x = make(store, kind)
    layer, x = layer.float(), x.float()
    expected = layer(x)
    last = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.1)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@each_case
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch(store: str, kind: str, batch: int) -> None:
    _, layer, x = make(store, kind)
    some = x[:1].expand(batch, *x.shape[1:])
    assert layer(some).shape == (batch, *layer(x).shape[1:])
    layer(some).sum().backward()


@cases("dense", "depthwise", "linear")
def test_wrong_routing_weights_and_dtypes_are_refused(store: str, kind: str) -> None:
    _, layer, x = make(store, kind)
    weights = layer.experts.num_weights
    for shape in ((1, weights), (3, 1), (3, weights - 1), (weights,)):
        with pytest.raises(UsageError, match=rf"`routing_weights` must have shape \[B, E\] = \(3, {weights}\), got"):
            layer(x, torch.rand(shape, dtype=torch.float64))
    with pytest.raises(UsageError, match="`routing_weights` must have a floating-point dtype"):
        layer(x, torch.ones(3, weights, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"`weight` must have the dtype of x, torch.float32, got torch.float64"):
        layer(x.float())


@each_store
def test_experts_part_in_two_steps(store: str) -> None:
    """A start from which all experts get one gradient would never leave it."""
    _, layer, x = make(store, "dense")
    before = {name: value.clone() for name, value in layer.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    for name, value in layer.named_parameters():
        assert not torch.equal(value, before[name]), name
    moved = layer.experts.kernels().flatten(1)
    assert layer.num_experts == 1 or nn.functional.pdist(moved).min() > 0
    assert layer.routing_fn(x).std(0).max() > 0


@each_store
def test_a_random_start_and_a_frozen_kernel(store: str) -> None:
    static = nn.Conv2d(8, 6, 3)
    number = ALONE.get(store, 3)
    random = condconv.CondConv2d.from_static(static, number, experts=store, init="random")
    assert not torch.allclose(random(torch.ones(1, 8, 4, 4)), static(torch.ones(1, 8, 4, 4)))
    assert random(torch.randn(64, 8, 4, 4)).std() < 10
    static.requires_grad_(False)
    frozen = condconv.CondConv2d.from_static(static, number, experts=store)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@each_store
def test_compiled_and_exported_with_any_batch(store: str) -> None:
    _, layer, x = make(store, "dense")
    layer, x = layer.float().eval(), x.float()
    torch.compiler.reset()  # of the stores before, which count as variants of one function
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.testing.assert_close(program.module()(x[:1]), layer(x[:1]), rtol=1e-4, atol=1e-4)


@each_store
@pytest.mark.parametrize("scope", ["layer", "block"])
def test_a_network_is_converted_folded_and_loaded(store: str, scope: str) -> None:
    torch.manual_seed(0)

    def block() -> nn.Module:
        depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        pointwise = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(*depthwise, *pointwise)

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), block(), block()).eval()

    static, x = network(), torch.randn(2, 3, 9, 9)
    model = copy.deepcopy(static)
    report = condconv.convert_(model, ALONE.get(store, 3), scope=scope, experts=store, example_input=x)
    assert len(report.layers) + len(report.refused) == 5
    torch.testing.assert_close(model(x), static(x), rtol=1e-4, atol=1e-5)
    other = network()
    again = condconv.convert_like_(network(), report.to_dict(), example_input=x)
    assert again.to_dict() == report.to_dict()
    loaded = condconv.weights.load_state_dict(model, other.state_dict())
    assert len(loaded.upcycled) == len(report.layers)
    torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)
    for module in model.modules():
        if isinstance(module, ConditionalLayer) and scope == "layer":
            routing_fn = module.routing_fn
            nn.init.normal_(routing_fn.heads.linear.weight if routing_fn.fc is None else routing_fn.fc.weight)
    expected = model(x)
    twin = network()
    condconv.convert_(twin, ALONE.get(store, 3), scope=scope, experts=store, example_input=x)
    condconv.weights.load_state_dict(twin, model.state_dict())
    torch.testing.assert_close(twin(x), expected)
    fold_batch_norms_(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("routing", ["sigmoid", "softmax", "hidden", "top_k"])
@pytest.mark.parametrize("scope", ["layer", "block"])
def test_the_centre_is_what_inputs_have_on_average(routing: str, scope: str) -> None:
    """Of a random start too: around another point all kernels would be off by the same amount."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(6, 6, 3)))
    options: Any = {"routing": routing, "scope": scope, "init": "random", "experts": "shared"}
    condconv.convert_(model, 4, **options, example_input=torch.randn(2, 3, 9, 9))
    layer = condconv.CondConv2d(3, 6, 3, num_experts=4, routing=routing, experts="shared")
    for each in (layer, *(module for module in model.modules() if isinstance(module, ConditionalLayer))):
        expected = 0.5 if routing in ("sigmoid", "hidden") else 0.25
        assert each.experts.centre.mean().item() == pytest.approx(expected)
    external = condconv.CondConv2d(3, 6, 3, num_experts=4, routing="external", experts="shared")
    assert external.experts.centre.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("store", "layer", "message"),
    [
        ("shared(rank=9)", nn.Conv2d(8, 6, 1), "`rank` must be at most the number of input channels, 8, got 9: give"),
        ("shared(rank=None)", nn.Conv2d(8, 6, 1), "`rank` must not be None without gains, got None: experts would all"),
        ("shared(rank=0)", nn.Conv2d(8, 6, 1), "`rank` must be a whole number, 'full', 'auto' or None, got 0"),
        ("modulated(taps=2)", nn.Conv2d(8, 6, 3), "`taps` must be True or False, got 2: leave it out"),
        ("modulated(input_blocks=0)", nn.Conv2d(8, 6, 3), "`input_blocks` must be a whole number of at least 1, got 0"),
        ("decomposed(rank=0)", nn.Conv2d(8, 6, 3), "`rank` must be a whole number of at least 1 or None, got 0: None"),
        ("decomposed(rank=9)", nn.Conv2d(8, 6, 3), "`rank` must be at most the number of input channels, 8, got 9"),
        (
            "decomposed",
            nn.Conv2d(8, 6, 3, groups=2),
            "`experts` must be others than decomposed ones for layers that have groups or are transposed, got groups",
        ),
        ("shared(gains=2)", nn.Conv2d(8, 6, 1), "`gains` must be True or False, got 2: leave it out"),
        ("shared(outputs=7)", nn.Conv2d(8, 6, 3), "`outputs` must be at most the rank of a kernel, 6, got 7: give"),
        ("shared(outputs=7)", nn.Conv2d(6, 8, 1), "`outputs` must be at most the rank of a kernel, 6, got 7"),
        ("shared(outputs=2)", nn.Conv2d(8, 8, 3, groups=2), "`outputs` must be None for a layer with groups, got 2"),
        (
            "shared(kernels=0)",
            nn.Conv2d(8, 6, 1),
            "`kernels` must be a whole number from 1 on or None, got 0: leave it out",
        ),
    ],
)
def test_what_a_layer_cannot_have(store: str, layer: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        condconv.CondConv2d.from_static(layer, ALONE.get(store, 3), experts=store)
    assert message in str(why_not_experts(store, layer))


@pytest.mark.parametrize(
    ("kind", "expected"), [("depthwise", [8]), ("grouped", [8, 6]), ("transposed, depthwise", [8]), ("dense", [8, 6])]
)
def test_depthwise_layers_have_one_gain_per_channel(kind: str, expected: list[int]) -> None:
    """One of the input channel would do what that of the output channel does."""
    layers: dict[str, nn.Module] = {
        "depthwise": nn.Conv2d(8, 8, 3, groups=8),
        "grouped": nn.Conv2d(8, 6, 3, groups=2),
        "transposed, depthwise": nn.ConvTranspose2d(8, 8, 3, groups=8),
        "dense": nn.Conv2d(8, 6, 3),
    }
    experts = make_experts("shared(gains=True)", KernelSpec.of(layers[kind]), 3)
    gains = {name: weight.shape[1] for name, weight in experts.named_parameters() if "gains" in name}
    assert list(gains.values()) == expected
    assert "output_gains.weight" in gains
    assert experts.linear == (len(expected) == 1)


def test_as_many_kernels_as_experts_are_refused() -> None:
    with pytest.raises(UsageError, match="`kernels` must be fewer than the 3 experts, got 3: give less, or take 'den"):
        condconv.CondConv2d(8, 8, 3, num_experts=3, experts="shared(kernels=3)")


@pytest.mark.parametrize("scale", [0, -1, 1.5, 1e-300, True, None, "'x'"])
def test_scales_that_differences_cannot_have(scale: Any) -> None:
    with pytest.raises(UsageError, match="`scale` must be a number from 0.001 to 1, got .*: 0.1 suits"):
        condconv.CondConv2d(3, 4, 1, num_experts=2, experts=f"deltas(scale={scale})")


def test_numbers_of_experts_that_a_store_cannot_have() -> None:
    with pytest.raises(UsageError, match="`num_experts` must be 1 for decomposed experts, got 3: they are one kernel"):
        condconv.CondConv2d(8, 6, 3, num_experts=3, experts="decomposed")
    with pytest.raises(UsageError, match="`taps` must come with gains of channels for one kernel of one tap, got inp"):
        condconv.CondConv2d(8, 6, 1, num_experts=1, experts="modulated(outputs=False, taps=True)")


@pytest.mark.parametrize("padding", [0, 1, 3, "same"])
def test_the_centre_of_a_kernel_at_any_padding(padding: int | str) -> None:
    torch.manual_seed(0)
    options: Any = {"dtype": torch.float64, "num_experts": 1, "experts": "decomposed", "padding": padding}
    layer = condconv.CondConv2d(8, 6, 3, dilation=2, **options)
    x, weights = torch.randn(2, 8, 9, 8, dtype=torch.float64), torch.rand(2, 10, dtype=torch.float64)
    kernels, _ = layer.experts.mix(weights)
    each_alone = [
        nn.functional.conv2d(one[None], kernel, layer.experts.bias, 1, padding, 2)
        for one, kernel in zip(x, kernels, strict=True)
    ]
    torch.testing.assert_close(layer(x, weights), torch.cat(each_alone))


def test_layers_of_different_channels_in_one_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x[:, :, 4:, 4:].sum(1, keepdim=True) + self.second(self.first(x))
            return y

    model, x = nn.Sequential(Block()), torch.randn(2, 3, 9, 9)
    scope = condconv.Scope("block", blocks="0")
    with pytest.raises(UsageError, match="`scope` must be 'layer' for experts whose routing has a number per channel"):
        condconv.convert_(model, 1, scope=scope, experts="modulated", example_input=x)


def test_a_store_of_ones_own() -> None:
    """What `Experts` promises: a subclass is all that a new way to store experts needs."""

    class Alone(condconv.nn.DenseExperts):
        """One expert per image at most."""

        def forward(self, x: Tensor, routing_weights: Tensor, geometry: Any, impl: str) -> Tensor:
            best = nn.functional.one_hot(routing_weights.argmax(1), self.num_experts).to(routing_weights.dtype)
            return super().forward(x, best, geometry, impl)

    layer = condconv.CondConv2d(3, 4, 3, num_experts=2, experts=Alone)
    x = torch.randn(1, 3, 5, 5)
    first = nn.functional.conv2d(x, layer.experts.kernels()[0], layer.experts.bias[0])
    torch.testing.assert_close(layer(x, torch.tensor([[0.9, 0.8]])), first)
    assert isinstance(layer.experts, Experts)


@each_case
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_units_are_a_layer_by_themselves_or_the_store_says_why_not(
    store: str, kind: str, number: int
) -> None:
    _, layer, x = make(store, kind)
    experts = layer.experts
    if (reason := experts.why_not_fewer) is not None:
        assert reason.islower()
        return
    routing_weights = torch.rand(3, experts.num_weights, dtype=torch.float64)
    experts.activate_(number)
    y, mixed = layer(x, routing_weights), experts.mix(routing_weights)[0]
    full = {name: each.detach() for name, each in experts.named_parameters()}
    found = torch.autograd.grad(y.square().sum(), [*experts.parameters()], allow_unused=True, materialize_grads=True)
    gradients = dict(zip(full, found, strict=True))
    if number == 0:
        ordinary = layer.to_static(experts.centre)
        assert torch.equal(ordinary.weight, experts.mix(experts.centre[None])[0][0])
        torch.testing.assert_close(y, ordinary(x))
        torch.testing.assert_close(layer(x), ordinary(x))  # not routed
        torch.testing.assert_close(mixed, ordinary.weight.expand_as(mixed))
        experts.activate_(None)
        torch.testing.assert_close(layer.to_static(experts.centre).weight, ordinary.weight)
        return
    units, whole = experts.units, number >= experts.units
    experts.keep_(number)
    assert (experts.active, experts.units) == (None, min(number, units))
    kept_weights = routing_weights[:, :number] if experts.unit == "experts" else routing_weights
    torch.testing.assert_close(layer(x, kept_weights), y)
    torch.testing.assert_close(experts.mix(kept_weights)[0], mixed)
    for name, each in experts.named_parameters():
        first = tuple(slice(size) for size in each.shape)
        assert torch.equal(each, full[name][first])
        assert gradients[name][first].abs().sum() > 0
        gradients[name][first] = 0
        assert not gradients[name].any()  # what is left out does not learn
    assert whole == all(each.shape == full[name].shape for name, each in experts.named_parameters())
    if experts.unit == "ranks":  # written as text, it is made again
        again = make_experts(written_experts(experts), experts.spec, experts.num_experts, dtype=experts.dtype)
        again.load_state_dict(experts.state_dict())
        torch.testing.assert_close(again.mix(kept_weights)[0], mixed)


@each_case
def test_a_store_that_is_written_as_text_is_made_again(store: str, kind: str) -> None:
    experts = make(store, kind)[1].experts
    again = make_experts(written_experts(experts), experts.spec, experts.num_experts, dtype=experts.dtype)
    assert (again.parts, repr(again)) == (experts.parts, repr(experts))
    again.load_state_dict(experts.state_dict())
    routing_weights = torch.rand(2, experts.num_weights, dtype=torch.float64)
    torch.testing.assert_close(again.mix(routing_weights)[0], experts.mix(routing_weights)[0])


@pytest.mark.parametrize(
    ("store", "kind", "text"),
    [
        ("deltas", "dense", "DeltaExperts(num_experts=3, kernel=(6, 8, 3, 3))"),
        ("deltas(scale=0.1)", "dense", "DeltaExperts(num_experts=3, kernel=(6, 8, 3, 3), scale=0.1)"),
        ("dense", "transposed, grouped", "DenseExperts(num_experts=3, kernel=(8, 3, 3, 3))"),
        ("modulated(taps=True)", "linear", "kernel=(5, 8), inputs=False, outputs=True, taps=False, input_blocks=1"),
        ("decomposed(rank=3)", "one dimension", "num_experts=1, kernel=(6, 8, 3), rank=3"),
        ("shared(outputs=2)", "linear", "num_experts=3, kernel=(5, 8), rank=None, gains=False, outputs=2"),
    ],
)
def test_repr_has_the_sizes_and_the_options(store: str, kind: str, text: str) -> None:
    experts = make_experts(store, KernelSpec.of(KINDS[kind][0]()), ALONE.get(store, 3))
    assert text in repr(experts)


def test_a_store_without_a_name_is_not_written() -> None:
    class Own(type(make("shared", "dense")[1].experts)):
        pass

    experts = Own(make("shared", "dense")[1].experts.spec, 3)
    with pytest.raises(UsageError, match="`experts` must be of this package to be written as text, got Own: names are"):
        written_experts(experts)
