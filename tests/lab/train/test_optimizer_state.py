"""The state of an optimizer from a file: what does not fit this optimizer is refused before an update needs it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn

from condconv.errors import UsageError
from condconv.files.checkpoint_format import join_optimizer, split_optimizer
from condconv.lab.train import train
from condconv.lab.train.optimization import create_optimizer
from condconv.lab.train.optimizer_state import load_optimizer_, load_scaler_
from tests.files.checkpoint_format.samples import forge
from tests.lab.samples import build, same_tensors, settings

PATH = Path("last.safetensors")


def stepped() -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.01)
    parameter.grad = torch.full((3,), 0.5)
    optimizer.step()
    return optimizer, copy.deepcopy(optimizer.state_dict())


def test_what_an_optimizer_saved_is_loaded() -> None:
    optimizer, state = stepped()
    state["param_groups"][0]["lr"] = 0.002
    load_optimizer_(optimizer, state, PATH)
    assert optimizer.param_groups[0]["lr"] == 0.002


@pytest.mark.parametrize(
    ("name", "value"),
    [("betas", "ab"), ("betas", [0.9]), ("eps", [1]), ("lr", "x"), ("lr", float("inf")), ("amsgrad", "yes")],
)
def test_settings_of_another_form_are_refused(name: str, value: object) -> None:
    optimizer, state = stepped()
    state["param_groups"][0][name] = value
    with pytest.raises(UsageError, match=rf"`checkpoint` must hold the state of this optimizer, .* \(its {name} is"):
        load_optimizer_(optimizer, state, PATH)


@pytest.mark.parametrize(
    ("name", "value"), [("betas", [5.0, 5.0]), ("eps", -1.0), ("weight_decay", 1e9), ("maximize", True)]
)
def test_settings_are_those_of_the_run_and_not_the_files(name: str, value: object) -> None:
    optimizer, state = stepped()
    state["param_groups"][0][name] = value
    with pytest.raises(UsageError, match=rf"\(its {name} is .*, where this optimizer has .*\): take another copy"):
        load_optimizer_(optimizer, state, PATH)


def test_steps_below_zero_are_refused() -> None:
    optimizer, state = stepped()
    state["state"][0]["step"] -= 5
    with pytest.raises(UsageError, match=r"\(its step is below 0\): take another copy"):
        load_optimizer_(optimizer, state, PATH)


def test_settings_that_are_missing_are_refused() -> None:
    optimizer, state = stepped()
    del state["param_groups"][0]["betas"]
    with pytest.raises(UsageError, match=r"\(it lacks betas\): take another copy"):
        load_optimizer_(optimizer, state, PATH)


def test_groups_that_are_missing_are_refused() -> None:
    optimizer, state = stepped()
    state["param_groups"] = []
    with pytest.raises(UsageError, match=r"\(it has 0 groups of parameters, not 1\)"):
        load_optimizer_(optimizer, state, PATH)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("exp_avg", torch.ones(3, dtype=torch.complex64), r"its exp_avg is torch.complex64 \(3,\), where this optimi"),
        ("exp_avg", torch.ones(3, dtype=torch.int64), r"its exp_avg is torch.int64 \(3,\), where this optimizer has"),
        (
            "exp_avg",
            torch.ones(4),
            r"its exp_avg is torch.float32 \(4,\), where this optimizer has torch.float32 \(3,\)",
        ),
        ("exp_avg_sq", torch.ones(1), r"its exp_avg_sq is torch.float32 \(1,\), where"),
        ("exp_avg_sq", 0.5, r"its exp_avg_sq is 0.5, where"),
        ("exp_avg", torch.tensor([0.1, float("nan"), 0.1]), "not all values of its exp_avg are finite"),
        ("step", torch.ones(2), r"its step is torch.float32 \(2,\), where this optimizer has torch.float32 \(\)"),
        ("step", torch.tensor(-1.0), "its step is below 0"),
        ("sum", torch.ones(3), "this optimizer does not keep its sum"),
    ],
)
def test_state_of_another_form_is_refused(name: str, value: object, message: str) -> None:
    optimizer, state = stepped()
    state["state"][0][name] = value
    with pytest.raises(UsageError, match=rf"`checkpoint` must hold the state of this optimizer, got .*{message}"):
        load_optimizer_(optimizer, state, PATH)


def test_state_that_is_missing_is_refused() -> None:
    optimizer, state = stepped()
    del state["state"][0]["exp_avg"]
    with pytest.raises(UsageError, match=r"\(it lacks exp_avg\): take another copy"):
        load_optimizer_(optimizer, state, PATH)
    state["state"] = {}
    with pytest.raises(UsageError, match=r"\(it has no state of any parameter\)"):
        load_optimizer_(optimizer, state, PATH)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("betas", [1.0, 0.999], "its betas is"), ("params", [1], "other parameters"), ("wings", 2, "keep its wings")],
)
def test_groups_that_no_step_can_be_made_with_are_refused(name: str, value: object, message: str) -> None:
    optimizer, state = stepped()
    state["param_groups"][0][name] = value
    with pytest.raises(UsageError, match=message):
        load_optimizer_(optimizer, state, PATH)


# Those that look at values, keep something before the first step, or only after some steps, or of their groups.
@pytest.mark.parametrize("name", ["adagrad", "adamp", "novograd", "lookahead_sgd", "lamb", "adan", "adafactor", "muon"])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_kind_of_optimizer_resumes_exactly(tmp_path: Path, name: str, steps: int) -> None:
    config = settings(tmp_path, optimizer=name)
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)) for _ in range(2)]
    ours, theirs = (create_optimizer(config, each) for each in networks)
    for _ in range(steps):
        step(networks[0], ours)
    networks[1].load_state_dict(networks[0].state_dict())
    plain, tensors = split_optimizer(copy.deepcopy(ours.state_dict()))
    load_optimizer_(theirs, join_optimizer(json.loads(json.dumps(plain)), tensors), PATH)
    for _ in range(7):
        for network, optimizer in zip(networks, (ours, theirs), strict=True):
            step(network, optimizer)
    assert same_tensors(networks[0].state_dict(), networks[1].state_dict())


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(1)
    network(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_parameter_that_never_had_a_gradient_has_no_state() -> None:
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.AdamW([used, unused])
    used.grad = torch.ones(2)
    optimizer.step()
    load_optimizer_(torch.optim.AdamW([used, unused]), copy.deepcopy(optimizer.state_dict()), PATH)


def test_a_resumed_run_with_a_forged_state_is_refused_before_it_begins(tmp_path: Path) -> None:
    path = train(settings(tmp_path, epochs=1), build=build).last
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        header = json.loads(file.metadata()["condconv"])
    header["config"]["epochs"] = 2
    del header["digests"]
    name = next(each for each in tensors if each.endswith("exp_avg"))
    forge(path, header, tensors | {name: tensors[name].flatten()[:1]})
    with pytest.raises(UsageError, match=r"`checkpoint` must hold the state of this optimizer, got .*its exp_avg is"):
        train(settings(tmp_path, epochs=2), build=build)


@pytest.mark.parametrize(
    "changes", [{"scale": "x"}, {"scale": -1.0}, {"scale": float("inf")}, {"growth_factor": 0.5}, {"wings": 2}]
)
def test_a_loss_scaler_takes_its_own_state_only(changes: dict[str, object]) -> None:
    scaler = torch.amp.GradScaler("cpu")
    state = scaler.state_dict() | {"scale": 256.0}
    load_scaler_(scaler, state, PATH)
    assert scaler.state_dict() == state
    with pytest.raises(UsageError, match="`checkpoint` must hold the state of this loss scaler, got last.safetensors"):
        load_scaler_(scaler, state | changes, PATH)
