"""Tensors that FSDP shards over processes: gathered for a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


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


def _like(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def share_out_(network: nn.Module, accelerator: Accelerator) -> None:
    """Shard a network that is not trained, in place, like the run's network."""
    # accelerate's prepare() takes one network with its optimizer only.
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    fsdp2_prepare_model(accelerator, network)
