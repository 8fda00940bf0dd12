"""Where files keep weights: averaged ones under the names of well-known frameworks, and plain ones beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from condconv.errors import UsageError
from condconv.weights import load_pretrained, load_state_dict

from .networks import small

State = dict[str, Tensor]


def filled(value: float) -> State:
    """Return the state dict of a small network, every tensor of which holds one value."""
    return {name: torch.full_like(tensor, value) for name, tensor in small().state_dict().items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def parameters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "running" not in name and "num_batches" not in name}


def lightning_modules(average: State, plain: State) -> Any:
    flat = prefixed("net.", plain) | prefixed("ema_net.module.", average) | {"ema_net.n_averaged": torch.tensor(9)}
    return {"state_dict": flat, "hyper_parameters": {"lr": 0.1}}


def latent_diffusion(average: State, plain: State) -> Any:
    squashed = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in parameters(average).items()}
    return {"state_dict": prefixed("model.", plain) | squashed | {"model_ema.decay": torch.tensor(0.99)}}


def open_mmlab_1(average: State, plain: State) -> Any:
    backup = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in parameters(plain).items()}
    return {"meta": {"epoch": 7}, "state_dict": average | backup}


def open_mmlab_2(average: State, plain: State) -> Any:
    backup = prefixed("module.", plain) | {"steps": torch.tensor(80)}
    return {"state_dict": average, "ema_state_dict": backup}


def lightning_callback(average: State, plain: State) -> Any:
    counters = {"n_averaged": torch.tensor(3)}
    return {"state_dict": average, "current_model_state": plain, "averaging_state": counters}


# What averaged and plain weights stand in.
FRAMEWORKS: dict[str, Callable[[State, State], Any]] = {
    "BasicSR": lambda average, plain: {"params": plain, "params_ema": average},
    "timm": lambda average, plain: {"epoch": 1, "state_dict": plain, "state_dict_ema": average, "arch": "x"},
    "torchvision": lambda average, plain: {
        "model": plain,
        "model_ema": {"n_averaged": torch.tensor(4), **prefixed("module.", average)},
    },
    "model_ema_state_dict": lambda average, plain: {"model_state_dict": plain, "model_ema_state_dict": average},
    "ema_model_state_dict": lambda average, plain: {"model_state_dict": plain, "ema_model_state_dict": average},
    "FixMatch": lambda average, plain: {"state_dict": plain, "ema_state_dict": prefixed("module.", average)},
    "RT-DETR": lambda average, plain: {"model": plain, "ema": {"module": average, "updates": 900}},
    "icefall": lambda average, plain: {"model": plain, "model_avg": average, "optimizer": {"state": {}}},
    "SWA": lambda average, plain: {"state_dict": plain, "swa_state_dict": average, "swa_n": 3},
    "StyleGAN2": lambda average, plain: {"g": filled(9), "generator": plain, "g_ema": average},
    "DINO": lambda average, plain: {"student": prefixed("module.", plain), "teacher": average},
    "nested": lambda average, plain: {"state": {"model": plain, "netEMA": {"state_dict": average}}},
    "callbacks": lambda average, plain: {
        "state_dict": prefixed("model.", plain),
        "callbacks": {"EMACallback{'decay': 0.99}": {"ema_state_dict": average, "updates": 9}, "Stopping": {"best": 1}},
    },
    "a callback's own": lambda average, plain: {"state_dict": plain, "callbacks": {"EMA": {"weights": average}}},
    "Lightning's modules": lightning_modules,
    "Lightning's WeightAveraging": lightning_callback,
    "latent diffusion": latent_diffusion,
    "OpenMMLab's hook of old": open_mmlab_1,
    "OpenMMLab's hook": open_mmlab_2,
    "one state dict": lambda average, plain: prefixed("student.", plain) | prefixed("teacher.", average),
    "in a wrapper": lambda average, plain: prefixed("module.ema_model.", average) | prefixed("module.model.", plain),
    "parameters alone": lambda average, plain: {"model": plain, "shadow": parameters(average)},
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_averaged_weights_are_taken_and_said(framework: str) -> None:
    content = FRAMEWORKS[framework](filled(2), filled(1))
    model = small(2)
    report = load_state_dict(model, content)
    assert float(model.stem.weight.detach().mean()) == 2
    assert "averaged weights were taken, under " in str(report)
    assert "averaged=False takes the plain ones" in str(report)
    report = load_state_dict(model, content, averaged=False)
    assert float(model.stem.weight.detach().mean()) == 1
    assert float(model.norm.running_var.mean()) == 1 + framework.startswith("OpenMMLab's hook of old")
    assert "plain weights were taken, under " in str(report)


@pytest.mark.parametrize("name", ["params_ema", "model_ema", "teacher", "weights_swa", "ema", "AveragedNet"])
def test_averaged_weights_alone(name: str) -> None:
    model, content = small(2), {"epoch": 3, name: filled(5)}
    report = load_state_dict(model, content)
    assert float(model.stem.weight.detach().mean()) == 5
    assert f"these are averaged weights, under '{name}': there are no others" in str(report)
    with pytest.raises(UsageError, match=f"`averaged` must be True for x.pth, got False: it has .* under '{name}'; le"):
        load_state_dict(model, content, averaged=False, source="x.pth")


def test_torchs_averaged_model(tmp_path: Any) -> None:
    source = small()
    averaged = AveragedModel(source, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(source)
    with torch.no_grad():
        source.stem.weight.add_(2)
    averaged.update_parameters(source)
    torch.save({"model": source.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "both.pth")
    model = small(2)
    load_pretrained(model, tmp_path / "both.pth")
    assert torch.equal(model.stem.weight, averaged.module.stem.weight)
    load_pretrained(model, tmp_path / "both.pth", averaged=False)
    assert torch.equal(model.stem.weight, source.stem.weight)
    report = load_state_dict(model, averaged.state_dict())
    assert "these are averaged weights" in str(report)
    assert torch.equal(model.stem.weight, averaged.module.stem.weight)
    load_state_dict(AveragedModel(small()), averaged.state_dict())  # into its like, nothing is taken apart


def test_timms_average(tmp_path: Any) -> None:
    utils = pytest.importorskip("timm.utils")
    source = small()
    average = utils.ModelEmaV3(source, decay=0.5)
    with torch.no_grad():
        source.stem.weight.add_(2)
    average.update(source)
    torch.save({"state_dict": source.state_dict(), "state_dict_ema": average.module.state_dict()}, tmp_path / "x.tar")
    model = small(2)
    load_pretrained(model, tmp_path / "x.tar")
    assert torch.equal(model.stem.weight, average.module.stem.weight)


class Pair(nn.Module):
    """A network in which a part is called as an average would be."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Conv2d(3, 4, 3)
        self.teacher = nn.Conv2d(3, 4, 3)


def test_a_networks_own_parts_are_no_averages() -> None:
    source, model = Pair(), Pair()
    for state in (source.state_dict(), prefixed("module.", source.state_dict())):
        report = load_state_dict(model, state)
        assert torch.equal(model.teacher.weight, source.teacher.weight)
        assert torch.equal(model.student.weight, source.student.weight)
        assert not report.notes


def test_a_layer_called_so_is_no_average() -> None:
    """A pooling with a number to learn, in a network that has another name for it."""
    state = small().state_dict() | {"avg_pool.p": torch.ones(1)}
    with pytest.raises(UsageError, match=r"the network has no avg_pool.p. Probably .* pass skip='avg_pool.\*'"):
        load_state_dict(small(2), state)


def test_misfits_say_which_weights_were_looked_at() -> None:
    content = {"params": small().state_dict(), "params_ema": {"0.weight": torch.zeros(4)}}
    with pytest.raises(UsageError, match=r"got x \(its averaged weights, under 'params_ema'; averaged=False takes tho"):
        load_state_dict(small(2), content, source="x")


def test_one_entry_of_any_name_and_several() -> None:
    model = small(2)
    load_state_dict(model, {"epoch": 3, "my_detector": filled(3), "optimizer": {"state": {0: {"step": torch.ones(1)}}}})
    assert float(model.stem.weight.detach().mean()) == 3
    with pytest.raises(UsageError, match=r"of one network, got x with tensors under 'first, second': say which you wa"):
        load_state_dict(model, {"first": filled(1), "second": filled(2)}, source="x")


def test_several_averages_are_said() -> None:
    report = load_state_dict(small(2), {"model": filled(1), "ema_0.9": filled(2), "ema_0.999": filled(3)})
    assert "there are other averages, under 'ema_0.999'" in str(report)


def test_mappings_that_never_end() -> None:
    loop: dict[str, Any] = {}
    loop |= dict.fromkeys(("model", "net", "ema"), loop)
    deep: dict[str, Any] = filled(1)
    for _ in range(3000):
        deep = {"state_dict": deep}
    wide: dict[str, Any] = filled(1)
    for _ in range(11):
        wide = dict.fromkeys(("model", "net", "network", "ema", "x"), wide)
    for content in (loop, deep, wide):
        with pytest.raises(UsageError, match="`path` must hold mappings in mappings 12 deep at most, got more: "):
            load_state_dict(small(2), content)


def test_names_that_no_network_has(tmp_path: Any) -> None:
    for name in ("a\x1b[2J.weight", "a" * 5000):
        with pytest.raises(UsageError, match="must hold tensors by a network's names, got state dict with '") as caught:
            load_state_dict(small(2), {name: torch.zeros(3)})
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300
