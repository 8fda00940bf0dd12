"""The state of an optimizer from a file: what does not fit this optimizer is refused before an update needs it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from condconv.errors import UsageError
from condconv.lab.train.sharding import load_optimizer_

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


def test_complex_numbers_are_refused() -> None:
    optimizer, state = stepped()
    state["state"][0]["exp_avg"] = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(UsageError, match=r"\(its exp_avg is complex\)"):
        load_optimizer_(optimizer, state, PATH)
