"""Names of a checkpoint's tensors, and the parts of an optimizer's state that are not tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError, shown

_OF_PARAMETER, _OF_GROUP = "optimizer", "group"


def prefixed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that they have in a file: `"model"` and `"ema"` are state dicts of networks."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def below(part: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file has of a part, under its own names."""
    return {name.removeprefix(f"{part}."): each for name, each in stored.items() if name.startswith(f"{part}.")}


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split an optimizer's state dict into plain values and tensors.

    The tensors are called `optimizer.<parameter>.<entry>` and `group.<group>.<entry>`. Some optimizers keep a tensor in
    their groups (LAMB: the step), or a dtype (adafactorbv), which becomes its name.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        plain[str(index)] = {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
        tensors |= _tensors_of(f"{_OF_PARAMETER}.{index}", entries)
    groups = []
    for number, group in enumerate(state["param_groups"]):
        kept = {name: value for name, value in group.items() if not isinstance(value, Tensor)}
        groups.append({name: str(value) if isinstance(value, torch.dtype) else value for name, value in kept.items()})
        tensors |= _tensors_of(f"{_OF_GROUP}.{number}", group)
    return {"state": plain, "param_groups": groups}, tensors


def join_optimizer(plain: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state dict that `split_optimizer` took apart.

    Raises:
        UsageError: A tensor is of a parameter or a group that the plain values do not have.
    """
    state = {int(index): dict(entries) for index, entries in plain["state"].items()}
    if not state.keys() <= {each for group in plain["param_groups"] for each in group["params"]}:
        raise _foreign("a parameter's state")
    groups = [{name: _as_dtype(value) for name, value in group.items()} for group in plain["param_groups"]]
    for part, owners in ((_OF_PARAMETER, state), (_OF_GROUP, dict(enumerate(groups)))):
        for name, tensor in below(part, stored).items():
            owner, _, entry = name.partition(".")
            if not owner.isdecimal() or int(owner) not in owners:
                raise _foreign(shown(f"{part}.{name}"))
            owners[int(owner)][entry] = tensor
    return {"state": state, "param_groups": groups}


def _foreign(what: str) -> UsageError:
    return UsageError(
        f"`checkpoint` must hold the state of its own optimizer, got {what} that belongs to no part of it: take "
        "another copy, or train again"
    )


def _tensors_of(owner: str, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    return {f"{owner}.{name}": value for name, value in entries.items() if isinstance(value, Tensor)}


def _as_dtype(value: Any) -> Any:
    """Return the dtype of that name, or what names none as it is."""
    written = isinstance(value, str) and value.startswith("torch.")
    named = getattr(torch, value.removeprefix("torch."), None) if written else None
    return named if isinstance(named, torch.dtype) else value
