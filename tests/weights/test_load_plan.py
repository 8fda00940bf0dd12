"""What is refused though it fits, and what may be left out: decided before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import UsageError
from condconv.nn import ConstantRouting
from condconv.weights import load_pretrained, load_state_dict

from .networks import assert_same_logits, assert_unchanged, copy_of, randomise, small


def test_a_trained_routing_cannot_start_from_one_kernel() -> None:
    state = small(2).state_dict()
    state["blocks.1.pointwise.weight"] = state.pop("blocks.1.pointwise.experts.weight")[0]
    with pytest.raises(ValueError, match="it has one kernel for blocks.1.pointwise and a trained routing for it, bl"):
        load_state_dict(small(2), state)


def test_counters_may_be_missing() -> None:
    model = small(2)
    state = {name: value for name, value in small(2).state_dict().items() if "num_batches_tracked" not in name}
    load_state_dict(model, state)
    assert torch.equal(model.stem.weight, state["stem.weight"])
    assert model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("routing", ["softmax", "top_k", "hidden"])
def test_timms_routing_is_a_sigmoid(routing: str) -> None:
    """Its names tell, and the shapes are those of other functions too."""
    timm = pytest.importorskip("timm")
    state = timm.create_model("efficientnet_cc_b0_4e", num_classes=10).state_dict()
    model = condconv.create_model("efficientnet_cc_b0_4e", num_classes=10, routing=routing)
    before = copy_of(model)
    message = {"hidden": "it lacks blocks.4.0.routing_fn.hidden.weight"}.get(
        routing, r'of state dict, got \w+Routing: create the network with routing="sigmoid"'
    )
    with pytest.raises(UsageError, match=message):
        load_state_dict(model, state)
    assert_unchanged(model, before)
    if routing == "softmax":  # what is left out was trained in vain, and nothing of it is taken
        load_state_dict(model, state, skip="*.routing_fn.*")
        assert torch.equal(model.blocks[4][0].conv_pw.weight.flatten(1), state["blocks.4.0.conv_pw.weight"])


def test_a_sigmoid_of_ones_own_takes_timms_routing() -> None:
    class Own(condconv.nn.SigmoidRouting):
        pass

    timm = pytest.importorskip("timm")
    state = timm.create_model("efficientnet_cc_b0_4e", num_classes=10).state_dict()
    load_state_dict(condconv.create_model("efficientnet_cc_b0_4e", num_classes=10, routing=Own), state)


def test_a_softmax_does_not_take_the_routing_of_a_sigmoid() -> None:
    """A softmax saves its temperature: weights without one were trained as another function."""
    sigmoid = small(2).state_dict()
    for skip in (None, "stem.*"):
        with pytest.raises(UsageError, match=r"must route as x was trained to, which lacks \S+, got SoftmaxRouting"):
            load_state_dict(small(2, routing="softmax"), sigmoid, skip=skip, source="x")
    softmax = small(2, routing="softmax").state_dict()
    with pytest.raises(UsageError, match="the network has no blocks.1.routing_fn.temperature"):
        load_state_dict(small(2), softmax)
    load_state_dict(small(2, routing="softmax"), softmax)
    load_state_dict(small(2, routing="softmax"), small().state_dict())  # a static network has none
    # Ports have no temperature, or none by this name: the network's stays.
    port = {name.replace("routing_fn.fc", "attention.net"): v for name, v in softmax.items() if v.dim()}
    model = small(2, routing="softmax")
    load_state_dict(model, port)
    assert torch.equal(model.blocks[1].routing_fn.fc.weight, softmax["blocks.1.routing_fn.fc.weight"])
    load_state_dict(small(2, routing="softmax"), sigmoid, skip=["*.temperature", "*_temperature", "*.annealing*"])
    load_state_dict(small(2, routing="softmax"), sigmoid, skip="*routing_fn*")


def test_a_routing_that_starts_anew_cannot_be_skipped() -> None:
    for pattern in ("*.routing_fn.*", "blocks.1.pointwise.*"):
        with pytest.raises(ValueError, match="`skip` must leave layers that share a routing together"):
            load_state_dict(small(2), small().state_dict(), skip=pattern)
    load_state_dict(small(2), small().state_dict(), skip="blocks.1.*")


def test_skip_knows_the_names_of_the_file() -> None:
    models = pytest.importorskip("torchvision").models
    model = condconv.create_model("mobilenet_v2_cc_035_2e", num_classes=10)
    before = model.classifier.weight.clone()
    source = models.mobilenet_v2(num_classes=10, width_mult=0.35).state_dict()
    report = load_state_dict(model, source, skip="classifier.1.*")
    assert {name.partition(".")[0] for name in report.skipped} == {"classifier"}
    assert torch.equal(model.classifier.weight, before)


def test_expert_spread_is_a_number_of_zero_or_more(tmp_path: Path) -> None:
    model, state = small(2), small().state_dict()
    for expert_spread in (-1.0, float("nan"), float("inf"), "0.5", None):
        with pytest.raises(ValueError, match="`expert_spread` must be a number of 0 or more"):
            load_state_dict(model, state, expert_spread=expert_spread)
        with pytest.raises(ValueError, match="`expert_spread` must be a number of 0 or more"):
            load_pretrained(model, [tmp_path / "absent"], expert_spread=expert_spread)
    load_state_dict(model, state, expert_spread=0)
    assert torch.equal(model.blocks[1].pointwise.weight[0], model.blocks[1].pointwise.weight[1])


def test_networks_that_cannot_be_loaded_into_are_refused() -> None:
    with torch.device("meta"):
        model: nn.Module = small()
    with pytest.raises(UsageError, match="`model` must have memory to load into, got 'stem.weight' on the meta device"):
        load_state_dict(model, small().state_dict())
    lazy = nn.Sequential(nn.LazyConv2d(3, 1))
    with pytest.raises(
        UsageError, match="must have its parameters, got '0.weight', which waits for a first input: run"
    ):
        load_state_dict(lazy, {"0.weight": torch.zeros(3, 3, 1, 1)})
    sharded = nn.Conv2d(3, 3, 1, bias=False)
    weight: Any = sharded.weight
    weight.device_mesh = "two devices"
    with pytest.raises(UsageError, match="`model` must be whole, got 'weight', which is sharded: load the weights"):
        load_state_dict(sharded, {"weight": torch.zeros(3, 3, 1, 1)})


class Cancelling(condconv.nn.RoutingFunction):
    """Its weights add up to nothing, which no kernel can be made of."""

    def weigh(self, pooled: Tensor) -> Tensor:
        return pooled.new_tensor([1.0, -1.0]).expand(len(pooled), -1)


class Silent(nn.Module):
    """No start at all."""

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), self.num_experts)


@pytest.mark.parametrize(
    ("routing", "message"),
    [(Cancelling, "weights that do not add up to 0, got"), (Silent, r"must have a method start_constant_\(\)")],
)
def test_a_routing_that_cannot_start_evenly_changes_nothing(routing: Any, message: str) -> None:
    """The first block's could; both are tried before either is written."""
    model = small(2, routing=lambda c, e: routing(c, e) if c == 16 else condconv.nn.SigmoidRouting(c, e))
    before = copy_of(model)
    with pytest.raises(
        UsageError, match=f"can start evenly, got {routing.__name__} for blocks.2.depthwise, .*{message}"
    ):
        load_state_dict(model, small().state_dict())
    assert_unchanged(model, before)


class OwnRouting(nn.Module):
    """A user's, without the base class: what `convert_` accepts is enough."""

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__()
        self.project = nn.Linear(in_channels, num_experts)
        self.register_buffer("scale", torch.ones(()))
        self.started = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(self.project(x.mean((2, 3)) if x.dim() > 2 else x))

    def start_constant_(self) -> Tensor:
        self.started += 1
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        return torch.full((self.project.out_features,), 0.5)


def test_a_routing_function_of_ones_own_starts_from_a_static_network() -> None:
    source = randomise(small()).double()
    model = small(3, routing=OwnRouting).double()
    load_state_dict(model, source.state_dict())
    assert_same_logits(model, source, (2, 32))
    assert model.blocks[1].routing_fn.started == 1
    assert model.blocks[1].depthwise.routing_fn.start.tolist() == [0.5] * 3  # for layers made from static ones later
    # Its own weights come back as they are, and none of them may be missing.
    trained = randomise(small(3, routing=OwnRouting)).double()
    load_state_dict(model, trained.state_dict())
    assert_same_logits(model, trained, (2, 32))
    partial = trained.state_dict()
    del partial["blocks.1.routing_fn.scale"]
    with pytest.raises(UsageError, match="it lacks blocks.1.routing_fn.scale"):
        load_state_dict(model, partial)


def test_layers_of_a_routing_function_are_none_of_the_networks() -> None:
    """By order: the routing's linear layers, and a user's too, have no counterpart in a static network."""
    source = small()
    renamed = {
        f"part{name.count('.')}_{name.replace('.', '_', name.count('.') - 1)}": v
        for name, v in source.state_dict().items()
    }
    model = small(3, routing=OwnRouting)
    report = load_state_dict(model, renamed)
    assert report.matched == "by kind and order"
    assert torch.equal(model.stem.weight, source.stem.weight)


def test_a_constant_routing_keeps_its_weights() -> None:
    source = randomise(small()).double()
    model = small(2, routing=lambda c, e: ConstantRouting(c, e, weights=[0.9, 0.3])).double()
    load_state_dict(model, source.state_dict())
    assert torch.equal(model.blocks[1].routing_fn.weights, torch.tensor([0.9, 0.3]).double())
    assert_same_logits(model, source, (2, 32))


def test_biases_of_experts_start_from_the_layers() -> None:
    def net(num_experts: int = 0) -> nn.Module:
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        if num_experts:
            condconv.convert_(model, num_experts, example_input=torch.zeros(1, 3, 8, 8), init="random")
        return model.double()

    source, model = net(), net(3)
    with pytest.raises(UsageError, match=r"of another shape: 0.bias \[5\]"):
        load_state_dict(model, source.state_dict() | {"0.bias": torch.zeros(5)})
    lacking = {name: value for name, value in source.state_dict().items() if name != "2.bias"}
    with pytest.raises(UsageError, match="it lacks 2.bias"):
        load_state_dict(model, lacking)
    load_state_dict(model, source.state_dict())
    assert_same_logits(model, source, (2, 8))
    kept = model[2].bias.clone()
    load_state_dict(model, source.state_dict(), skip="2.bias")
    assert torch.equal(model[2].bias, kept)


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """Any network that `convert_` made takes the static one's weights, and its output is checked from a file."""
    source, model = small().eval(), small(3).eval()
    torch.save(source.state_dict(), tmp_path / "own.pth")
    load_pretrained(model, tmp_path / "own.pth")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-5)


def test_quantized_experts_take_no_weights() -> None:
    model = nn.Sequential(condconv.CondConv2d(3, 4, 3, num_experts=2))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    condconv.quantize_experts_(model, "bfloat16")
    with pytest.raises(UsageError, match="`model` must have ordinary experts, got quantized ones in '0'"):
        load_state_dict(model, state)
