"""Several checkpoints as experts: batch norm moves into each expert, and the average is where the network starts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import condconv
from condconv.nn import ConstantRouting
from condconv.weights.layers import Layers
from condconv.weights.snapshots import _layer_tensors, _set_layer_
from condconv.weights.write import copy_tensors_, spread_kernels_

from .networks import assert_same_logits, assert_unchanged, randomise, small
from .snapshot_runs import IMAGE, conditional_net, runs, save, small_net


def test_the_same_checkpoint_for_every_expert_is_that_network(tmp_path: Path) -> None:
    (net,) = runs(1)
    model = conditional_net(3, bias=False)
    report = condconv.load_pretrained(model, save([net, net, net], tmp_path), example_input=IMAGE)
    assert_same_logits(model, net, (3, 16))
    assert report.upcycled == ("3", "6", "10")
    assert report.notes == ()


@pytest.mark.parametrize("expert", [0, 1, 2])
def test_picking_one_expert_gives_its_checkpoint(expert: int, tmp_path: Path) -> None:
    """Layers with a bias: exact, though each checkpoint has norms of its own after its kernels.

    The initial routing sums to 1, so that kernels are those of the checkpoints and a weight of 1 picks one.
    """
    nets = runs(3, bias=True)
    model = conditional_net(3, bias=True, weights=[0.5, 0.25, 0.25])
    condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    for module in model.modules():
        if isinstance(module, ConstantRouting):
            module.weights = torch.eye(3)[expert].double()
    assert_same_logits(model, nets[expert], (3, 16))


class SinglePrecision(condconv.nn.SigmoidRouting):
    """A start as users write it, in the dtype of the parameters."""

    def start_constant_(self) -> Tensor:
        return super().start_constant_().float()


def test_the_start_of_a_routing_function_may_have_any_dtype(tmp_path: Path) -> None:
    (net,) = runs(1)
    model = small_net()
    condconv.convert_(model, 2, layers="3", routing=SinglePrecision, experts="dense", example_input=IMAGE.float())
    condconv.load_pretrained(model.double(), save([net, net], tmp_path), example_input=IMAGE)
    assert_same_logits(model, net, (3, 16))


def folded(net: nn.Module) -> dict[str, Tensor]:
    """Return the kernel and bias of each convolution with the norm after it, worked out here."""
    result = {}
    for conv, norm in ((3, 4), (6, 7)):
        scale = net[norm].weight / (net[norm].running_var + net[norm].eps).sqrt()
        bias = 0.0 if net[conv].bias is None else net[conv].bias
        result[f"{conv}.weight"] = net[conv].weight * scale.view(-1, 1, 1, 1)
        result[f"{conv}.bias"] = net[norm].bias + scale * (bias - net[norm].running_mean)
    return {name: value.detach() for name, value in result.items()}


@pytest.mark.parametrize("bias", [False, True])
def test_the_start_is_the_average_of_the_folded_networks(bias: bool, tmp_path: Path) -> None:
    nets = runs(2, bias)
    model = conditional_net(2, bias)
    report = condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    average = nn.Sequential(*copy.deepcopy(nets[0]))
    pairs = [folded(net) for net in nets]
    for conv, norm in ((3, 4), (6, 7)):
        old = nets[0][conv]
        new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, padding=old.padding, groups=old.groups)
        new.weight = nn.Parameter((pairs[0][f"{conv}.weight"] + pairs[1][f"{conv}.weight"]) / 2)
        new.bias = nn.Parameter((pairs[0][f"{conv}.bias"] + pairs[1][f"{conv}.bias"]) / 2)
        average[conv], average[norm] = new, nn.Identity()
    with torch.no_grad():
        for leaf in ("weight", "bias"):
            mean = (getattr(nets[0][10], leaf) + getattr(nets[1][10], leaf)) / 2
            getattr(average[10], leaf).copy_(mean)
    assert_same_logits(model, average, (3, 16))
    assert bool(report.notes) == (not bias)


def test_layers_without_experts_are_the_first_checkpoints(tmp_path: Path) -> None:
    nets = runs(2, same_trunk=False)
    model = conditional_net(2, bias=False)
    condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    assert torch.equal(model[0].weight, nets[0][0].weight)
    assert torch.equal(model[1].running_var, nets[0][1].running_var)


def test_a_channel_that_no_checkpoint_uses(tmp_path: Path) -> None:
    """A scale of zero everywhere must not divide."""
    nets = runs(2, bias=True)
    with torch.no_grad():
        for net in nets:
            net[4].weight[2] = 0.0
        nets[0][4].weight[3] = 0.0
    model = conditional_net(2, bias=True)
    condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model[4].weight[2] == 0
    assert model[4].weight[3] > 0


def test_the_statistics_of_the_norm_are_about_those_of_its_input(tmp_path: Path) -> None:
    """In training the norm divides by what it sees: for snapshots that hardly differ it must be what it stored."""
    torch.manual_seed(0)
    (net,) = runs(1)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other[3:].parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
        other[6].weight.mul_(3)  # which its norm undoes, and ours stores for each expert's part
    images = torch.randn(64, 3, 16, 16, dtype=torch.float64)
    for each in (net, other):
        each.train()
        for module in each:
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        each(images)
    model = conditional_net(2, bias=False)
    condconv.load_pretrained(model, save([net, other], tmp_path), example_input=IMAGE)
    stored = model[7].running_var.clone()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    torch.testing.assert_close(model[7].running_var, stored, rtol=0.1, atol=0)


def test_a_network_of_the_zoo(tmp_path: Path) -> None:
    (net,) = [randomise(small()).double()]
    model = small(2).double()
    report = condconv.load_pretrained(model, save([net, net], tmp_path))  # the example is guessed
    assert report.upcycled == (
        "blocks.1.depthwise",
        "blocks.1.pointwise",
        "blocks.2.depthwise",
        "blocks.2.pointwise",
        "classifier",
    )
    assert str(report).splitlines()[0].startswith("2 checkpoints: ")
    assert report.notes == ()
    assert_same_logits(model, net, (2, 64))


class PreActivation(nn.Module):
    """Two convolutions of a residual block, after whose second no norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return self.head(self.norm3(x).mean((2, 3)))


def test_layers_without_a_norm_right_after_them_are_named(tmp_path: Path) -> None:
    nets = [randomise(PreActivation()).double() for _ in range(2)]
    model = PreActivation()
    condconv.convert_(model, 2, layers="conv?", classifier=True, experts="dense", example_input=IMAGE.float())
    model.double().eval()
    report = condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    shift, scale = report.notes
    assert shift.startswith("1 layers have no bias to hold each checkpoint's own shift")
    assert scale == (
        "1 layers have no batch norm right after them to fold (conv2): their kernels were taken as they are, though "
        "each checkpoint trained its own at the scale of its own norms, so the start is not the average of the networks"
    )
    # The routing starts with a half for each of two experts, which is their mean.
    for name in ("conv2", "head"):
        weights = torch.stack([net.get_submodule(name).weight for net in nets])
        torch.testing.assert_close(model.get_submodule(name).weight, weights)


def test_experts_of_checkpoints_get_no_noise(tmp_path: Path) -> None:
    paths = save(runs(2), tmp_path)
    model = conditional_net(2, bias=False)
    drawn = torch.random.get_rng_state()
    condconv.load_pretrained(model, paths, example_input=IMAGE, expert_spread=100.0)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_compiled_network_is_looked_into(tmp_path: Path) -> None:
    """Which norm follows which layer is seen in the network that was compiled; nothing is compiled for that."""
    nets = runs(2)
    plain = conditional_net(2, bias=False)
    inner = copy.deepcopy(plain)
    paths = save(nets, tmp_path)
    expected = condconv.load_pretrained(plain, paths, example_input=IMAGE)

    def backend(graph: nn.Module, inputs: list[Tensor]) -> None:
        raise AssertionError("compiled")

    compiled = torch.compile(inner, backend=backend)
    report = condconv.load_pretrained(compiled, paths, example_input=IMAGE)
    assert report.notes == expected.notes
    assert_unchanged(inner, plain.state_dict())


def test_a_network_on_another_device() -> None:
    """Checkpoints are on the CPU. Fake tensors know their devices, refuse to mix them, and need none."""
    states = [net.state_dict() for net in runs(2, bias=True)]
    model = conditional_net(2, bias=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    elsewhere = None if value is None else torch.empty_like(value, device="cuda")
                    held[name] = (
                        nn.Parameter(elsewhere) if held is module._parameters and elsewhere is not None else elsewhere
                    )
        assert model[3].weight.device.type == "cuda"
        start = torch.full((2,), 0.5, dtype=torch.float64)
        layers = Layers(model)
        copy_tensors_(layers, {"0.weight": states[0]["0.weight"]})
        spread_kernels_(layers, dict.fromkeys(("3", "6", "10"), start), states[0], expert_spread=0.5)
        for layer, norm in (("3", "4"), ("6", "7"), ("10", None)):
            own = [_layer_tensors(state, layer, norm) for state in states]
            _set_layer_(model.get_submodule(layer).experts, norm and model.get_submodule(norm), own, start)
