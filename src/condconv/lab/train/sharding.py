"""Tensors that FSDP shards over processes: gathered for a file, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from condconv.errors import UsageError, first_line, shown, shown_name


def gathered(state: Any) -> Any:
    """Return a state with all sharded tensors gathered; every process must call it.

    Args:
        state: A tensor, or dicts and lists that hold some; other values stay.
    """
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()  # one after the other, or the device would hold all of them whole
    if isinstance(state, Mapping):
        return {name: gathered(each) for name, each in state.items()}
    return [gathered(each) for each in state] if isinstance(state, list) else state


def share_out_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's full state sharded like its parameters.

    Args:
        state: Of `optimizer.state_dict()`, whole.
        optimizer: Of this run; its parameters may be plain.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    shared = {
        index: {name: _like(each, parameters[index]) for name, each in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": shared}


def load_optimizer_(optimizer: Any, state: dict[str, Any], path: Path) -> None:
    """Restore an optimizer from a checkpoint, in place; its state is sharded like the parameters.

    Args:
        optimizer: Of this run.
        state: Of `optimizer.state_dict()`, whole.
        path: The checkpoint's file, for the message.

    Raises:
        UsageError: The state is another optimizer's.
    """
    try:
        _check_groups(state["param_groups"], optimizer.state_dict()["param_groups"])
        _check_numbers(state["state"])
        optimizer.load_state_dict(share_out_optimizer(state, optimizer))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"`checkpoint` must hold the state of this optimizer, got {shown_name(path)} ({first_line(error)}): take "
            "another copy, or train again in another --out"
        ) from error


def _check_groups(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
    """Check that a file has all that the optimizer keeps of its groups, in the same form.

    Raises:
        ValueError: It has not.
    """
    if len(saved) != len(own):
        raise ValueError(f"it has {len(saved)} groups of parameters, not {len(own)}")
    for theirs, ours in zip(saved, own, strict=True):
        for name, value in ours.items():
            if name not in theirs:
                raise ValueError(f"it lacks {name}")
            if name != "params" and value is not None and not _has_form_of(theirs[name], value):
                raise ValueError(f"its {name} is {shown(theirs[name])}, where this optimizer has {shown(value)}")


def _has_form_of(value: Any, own: Any) -> bool:
    if isinstance(own, (tuple, list)):
        return isinstance(value, (tuple, list)) and len(value) == len(own) and all(map(_has_form_of, value, own))
    if isinstance(own, bool) or not isinstance(own, (int, float)):
        return isinstance(value, type(own))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_numbers(state: Mapping[Any, Mapping[str, Any]]) -> None:
    """Check that what an optimizer keeps of each parameter are real numbers.

    Raises:
        ValueError: A tensor holds others.
    """
    for entries in state.values():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.is_complex():
                raise ValueError(f"its {name} is complex")


def _like(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def share_out_(network: nn.Module, accelerator: Accelerator) -> None:
    """Shard a network that is not trained, in place, like the run's network."""
    # accelerate's prepare() takes one network with its optimizer only.
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    fsdp2_prepare_model(accelerator, network)
