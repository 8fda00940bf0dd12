"""Experts that are known to lie in a few channels come back exactly; what cannot be compressed says why."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.convert import compress_experts_, exchange_experts_, quantize_experts_
from condconv.errors import UsageError
from condconv.nn import CondConv2d, CondConvTranspose2d, ConditionalLayer, CondLinear
from condconv.nn.experts.fitting import low_rank_with
from tests.export.cases import sharpen_

# Of different brightness and colour: routing sees nothing else of noise.
IMAGES = [torch.randn(16, 3, 9, 9) + 2 * torch.randn(16, 3, 1, 1) for _ in range(4)]


class Classifier(nn.Sequential):
    """All that differs between kinds of layers: pointwise, depthwise, k x k and a head, all with experts."""

    def __init__(self, experts: str = "dense", bias: bool = True) -> None:
        options: Any = {"num_experts": 5, "experts": experts, "bias": bias}
        super().__init__(
            CondConv2d(3, 12, 3, **options),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            CondConv2d(12, 12, 3, groups=12, **options),
            nn.ReLU(),
            CondConv2d(12, 16, 1, **options),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            CondLinear(16, 7, **options),
        )


def network(experts: str = "dense", bias: bool = True) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(experts, bias)
    sharpen_(model)
    return model.eval()  # as random, so as far from low rank as experts can be


def low_rank_(layer: ConditionalLayer, rank: int) -> None:
    """Make experts differ through so many channels only, besides multiples of one kernel if they are dense."""
    experts: Any = layer.experts
    axis = 2 if layer.transposed else 1  # of the outputs in a stack of kernels
    with torch.no_grad():
        kernels, biases = experts.weight[-5:].movedim(axis, 1), None if experts.bias is None else experts.bias[-5:]
        inputs = kernels[0, 0].numel() + (biases is not None)
        up, down = torch.randn(kernels.shape[1], rank), torch.randn(rank, inputs)
        stack = up @ torch.randn(5, rank, rank) @ down / rank**1.5 * experts.weight.std()
        if biases is not None:
            biases.copy_(stack[:, :, -1])
            stack = stack[:, :, :-1]
        common = torch.rand(5, 1, 1) * experts.weight[0].movedim(axis - 1, 0).flatten(1)
        kernels.copy_((stack + (common if len(experts.weight) == 5 else 0)).view(kernels.shape))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (partial(CondConv2d, 6, 8, 3, padding=1), (6, 7, 6)),
        (partial(CondConv2d, 6, 8, 1, stride=2), (6, 7, 6)),
        (partial(CondConvTranspose2d, 6, 8, 3, stride=2), (6, 5, 4)),
        (partial(CondLinear, 6, 8), (6,)),
    ],
    ids=["3 x 3", "pointwise", "transposed", "linear"],
)
@pytest.mark.parametrize(("experts", "with_data"), [("dense", True), ("deltas", True), ("deltas", False)])
def test_experts_of_few_channels_are_found_exactly(
    layer: Any, shape: tuple[int, ...], experts: str, with_data: bool
) -> None:
    model = sharpen_(nn.Sequential(layer(num_experts=5, experts=experts, bias=experts == "deltas")))
    low_rank_(model[0], 3)
    x = torch.randn(9, *shape)
    expected = model(x)
    assert not torch.allclose(nn.Sequential(model[0].to_static(torch.full((5,), 0.5)))(x), expected, atol=1e-2)
    report = compress_experts_(model, "shared(outputs=3)", data=[x] if with_data else None)
    assert report.layers[0].error < 1e-5
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert report.images == (9 if with_data else None)


def test_the_kernel_is_the_mixture_of_the_mean_weights() -> None:
    model = network()
    old = copy.deepcopy(model)
    seen: list[Tensor] = []
    old[0].experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].detach()))
    for images in IMAGES:
        old(images)
    report = compress_experts_(model, "shared(outputs=3)", data=[(each, None) for each in IMAGES], max_error=1)
    mean = torch.cat(seen).mean(0)
    kernel, bias = old[0].experts.fold(mean)
    new: Any = model[0].experts
    torch.testing.assert_close(new.centre, mean)
    torch.testing.assert_close(new.weight, kernel.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(new.bias, bias.float(), rtol=1e-4, atol=1e-6)
    assert report.images == 64
    assert torch.equal(model[0].routing_fn.fc.weight, old[0].routing_fn.fc.weight)


def test_the_error_is_that_of_the_mixed_kernels() -> None:
    model = network(bias=False)
    old = copy.deepcopy(model)
    weights: list[Tensor] = []
    old[5].experts.register_forward_pre_hook(lambda _, inputs: weights.append(inputs[1].detach().double()))
    for images in IMAGES:
        old(images)
    report = compress_experts_(model, "shared(outputs=2)", data=IMAGES, layers="5", max_error=1)
    r = torch.cat(weights)
    exact, fitted = old[5].experts.mix(r)[0], model[5].experts.mix(r)[0]
    expected = (fitted - exact).norm() / exact.norm()
    assert report.layers[0].error == pytest.approx(expected.item(), rel=1e-3)
    assert report.layers[0].error > 0.01


def test_what_the_routing_does_decides() -> None:
    """A direction that no image takes costs nothing, however large it is."""
    model = nn.Sequential(CondConv2d(4, 8, 1, num_experts=3, routing="external", bias=False, experts="dense"))
    experts: Any = model[0].experts
    with torch.no_grad():
        experts.weight[1] = experts.weight[0] + torch.outer(torch.randn(8), torch.randn(4))[..., None, None]
        experts.weight[2] = 100 * torch.randn(8, 4, 1, 1)

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model[0]

        def forward(self, x: Tensor) -> Tensor:
            share = x[:, 0, 0, 0].sigmoid()
            y: Tensor = self.layer(x, torch.stack([share, 1 - share, torch.full_like(share, 0.2)], 1))
            return y

    report = compress_experts_(Routed(), "shared(outputs=1)", data=[torch.randn(32, 4, 3, 3)])
    assert report.layers[0].error < 1e-4


def test_more_channels_and_kernels_leave_less() -> None:
    errors = {}
    for store in (
        "shared(outputs=1)",
        "shared(outputs=4)",
        "shared(outputs=8)",
        "shared(kernels=1)",
        "shared(kernels=3)",
    ):
        model = network()
        errors[store] = compress_experts_(model, store, data=IMAGES, layers="5", max_error=9).layers[0].error
    one, four, eight, kernel, kernels = errors.values()
    assert one > four > eight > 0
    assert kernel > kernels > 0


def test_the_best_channels_of_one_matrix_are_its_singular_vectors() -> None:
    matrix, kernel = torch.randn(2, 7, 9, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix)
    expected = left[:, :3] * values[:3] @ right[:3]
    kernel = kernel - left @ (left.mT @ kernel @ right[:7].mT).diag().diag() @ right[:7]  # nothing of the matrix
    up, core, down, factors = low_rank_with(matrix[None], torch.eye(1, dtype=torch.float64), 3, kernel)
    torch.testing.assert_close(up @ core[0] @ down, expected, atol=1e-3, rtol=1e-3)
    assert factors.abs().max() < 1e-3
    both = (matrix - left[:, 3:] * values[3:] @ right[3:7] + 2 * kernel)[None]  # rank three, and twice the kernel
    up, core, down, factors = low_rank_with(both, torch.eye(1, dtype=torch.float64), 3, kernel)
    torch.testing.assert_close(up @ core[0] @ down, expected)
    assert factors.item() == pytest.approx(2)


@pytest.mark.parametrize("experts", ["dense", "deltas"])
def test_a_network_is_compressed_and_loaded(experts: str) -> None:
    model = network(experts)
    before = model(IMAGES[0])
    report = compress_experts_(model, "shared(outputs=6)", data=IMAGES, skip="0", max_error=1)
    assert [(each.name, each.experts) for each in report.layers] == [
        ("3", "shared(kernels=2)"),
        ("5", "shared(outputs=6)"),
        ("8", "shared(outputs=6)"),
    ]
    assert report.params_after == sum(each.numel() for each in model.parameters()) < report.params_before
    # Random experts are of full rank, so a part is lost; of what tells images apart most is kept.
    assert (model(IMAGES[0]) - before).norm() < 0.7 * (before - before.mean(0)).norm()
    other = network(experts)
    exchange_experts_(other, report.stores)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(IMAGES[0]), model(IMAGES[0]))
    text = str(report)
    assert "5      shared(outputs=6)" in text
    assert f"parameters: {report.params_before:,} -> {report.params_after:,}" in text
    assert "note: relative error above 0.1: " in text


def test_a_repair_brings_the_outputs_closer_and_trains_nothing_else() -> None:
    torch.manual_seed(1)
    old = network()
    plain, repaired = copy.deepcopy(old), copy.deepcopy(old)
    repaired[8].experts.requires_grad_(False)
    options: Any = {"data": IMAGES, "max_error": 1, "layers": "0,3,5"}
    compress_experts_(plain, "shared(outputs=2)", **options)
    report = compress_experts_(repaired, "shared(outputs=2)", **options, repair_epochs=20)
    x = torch.cat(IMAGES)
    far, near = ((each(x).softmax(1) - old(x).softmax(1)).norm().item() for each in (plain, repaired))
    assert near < 0.7 * far
    assert len(report.repair) == 20
    assert report.repair[-1] < report.repair[0]
    assert "repair, nats: " in str(report)
    assert torch.equal(repaired[8].experts.weight, old[8].experts.weight)
    assert torch.equal(repaired[1].running_mean, old[1].running_mean)
    assert torch.equal(repaired[1].weight, old[1].weight)
    assert not torch.equal(repaired[0].routing_fn.fc.weight, old[0].routing_fn.fc.weight)
    assert not repaired[8].experts.weight.requires_grad
    assert all(each.requires_grad for each in repaired[0].parameters())


def test_layers_that_stay_have_a_reason() -> None:
    model = network()
    compress_experts_(model, "shared(outputs=3)", data=IMAGES, layers="5", max_error=1)
    left = compress_experts_(model, "shared(outputs=5)", grouped=None, data=IMAGES, max_error=1).left
    assert left["3"].startswith("it has groups: give such layers experts too, grouped=")
    assert left["5"] == "its experts are one kernel with routed parts already"
    model = network()
    left = compress_experts_(model, "shared(outputs=8)", data=IMAGES, max_error=1).left
    assert left == {"8": "`outputs` must be at most the rank of a kernel, 7, got 8: give less"}


@pytest.mark.parametrize("name", ["experts", "grouped"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("shared(outputs=0)", "`outputs` must be a whole number from 1 on or None, got 0: leave"),
        ("shared(kernels='all')", "`kernels` must be a whole number from 1 on or None, got 'all': leave"),
        ("shared(kernels=2, gains=1)", "`gains` must be True or False, got 1: leave"),
    ],
)
def test_values_that_no_layer_can_have_are_refused_and_not_noted_for_each(name: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compress_experts_(network(), **{name: value}, data=IMAGES, max_error=1)


def untrained() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    condconv.convert_(net, 4, experts="dense", example_input=IMAGES[0])
    return net


def alike() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    condconv.convert_(net, 4, experts="dense", expert_spread=0.0, example_input=IMAGES[0])
    return net


def with_nan() -> nn.Module:
    model = network()
    model[0].experts.weight.data[0, 0] = torch.nan
    return model


def shared_already() -> nn.Module:
    return network("shared")


def int8() -> nn.Module:
    model = network()
    quantize_experts_(model, example_input=IMAGES[0])
    return model


class NotAClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Any:
        return {"classes": self.inner(x)}


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "untrained": (untrained, {}, "got '0': its routing gives all images the same weights: train it first"),
    "alike": (alike, {}, "got '0': its experts are all alike: train it first, or make it static"),
    "shared": (shared_already, {}, "got '0': its experts are one kernel with routed parts already"),
    "quantized": (int8, {}, r"got '0': its experts are quantized \(torch.int8\): compress the network"),
    "static": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1)), {}, "`model` must have conditional layers, got Sequential"),
    "not a model": (lambda: "net", {}, "`model` must be a torch.nn.Module, got"),
    "diverged": (with_nan, {}, "`model` must have finite experts, got others: the network has diverged"),
    "meta": (lambda: network().to("meta"), {}, "`model` must have values, got one on the meta device: load"),
    "rank": (
        network,
        {"experts": "shared(outputs=99)", "skip": "3"},
        "got '0': `outputs` must be at most the rank of a kernel, 12",
    ),
    "size": (network, {"experts": "shared(kernels=4)", "layers": "0"}, "got '0': 'shared.kernels=4.' would take"),
    "dense": (network, {"experts": "dense"}, "`experts` must be of a kind that can be fitted, got 'dense': Dense"),
    "gains": (network, {"experts": "shared(rank=2)"}, "can be fitted, got 'shared.rank=2.': only what `outputs`"),
    "unknown": (network, {"experts": "vgg"}, "`experts` must be one of dense, deltas, shared"),
    "grouped": (network, {"grouped": "vgg"}, "`experts` must be one of dense, deltas, shared"),
    "no images": (network, {"data": []}, "`data` must hold images, got none: give a loader that has some"),
    "not images": (network, {"data": [{"x": 1}]}, "`data` must hold batches of images, got {'x': 1}: give tensors"),
    "not data": (network, {"data": 3}, "`data` must be a loader of images, got 3: give batches"),
    "error": (
        network,
        {"experts": "shared(outputs=1)"},
        r"`max_error` must be at least the relative error of each layer",
    ),
    "bound": (network, {"max_error": "low"}, "`max_error` must be a number above 0, got 'low'"),
    "nan bound": (network, {"max_error": float("nan")}, "`max_error` must be a number above 0, got nan"),
    "layers": (network, {"layers": "x*"}, r"`layers` must match conditional layers, got 'x\*' for none"),
    "epochs": (network, {"repair_epochs": -1}, "`repair_epochs` must be a whole number of at least 0, got -1"),
    "no data": (network, {"repair_epochs": 1, "data": None}, "`data` must be given for a repair, got None"),
    "once": (network, {"repair_epochs": 1, "data": iter(IMAGES)}, "`data` must start again for each epoch of a repair"),
    "no classes": (
        NotAClassifier,
        {"repair_epochs": 1, "max_error": 9},
        "`repair_epochs` must be 0 for a network that does not return .B, classes., got a dict",
    ),
    "rate": (
        network,
        {"repair_epochs": 1, "max_error": 9, "repair_lr": 1e30},
        "`repair_lr` must let the repair converge, got 1e.30",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compressed_is_left_as_it_was(case: str) -> None:
    make, options, message = REFUSED[case]
    model = make()
    state = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    with pytest.raises(UsageError, match=message):
        compress_experts_(model, **{"experts": "shared(outputs=3)", "data": IMAGES, **options})
    for name, value in model.state_dict().items() if state else ():
        assert value.is_meta or torch.equal(value.nan_to_num(), state[name].nan_to_num()), name
    assert not state or set(model.state_dict()) == set(state)
    assert not isinstance(model, nn.Module) or all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize(
    ("stores", "message"),
    [
        ({"1": "shared"}, "`stores` must be for conditional layers of the network, got '1': there are 0, 3, 5, 8"),
        ({"0": "shared(outputs=2)", "3": "shared(outputs=2)"}, "`outputs` must be None for a layer with groups"),
        (["0"], "`stores` must map layers' names to experts, got .'0'.: give a dictionary"),
    ],
)
def test_experts_that_a_layer_cannot_be_given(stores: Any, message: str) -> None:
    model = network()
    with pytest.raises(UsageError, match=message):
        exchange_experts_(model, stores)
    assert type(model[0].experts) is condconv.nn.DenseExperts
