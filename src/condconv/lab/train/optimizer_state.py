"""The state of an optimizer from a file: compared with what this optimizer keeps before it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError, few, first_line, shown, shown_name
from condconv.files.schema import is_finite_number
from condconv.lab.train.sharding import share_out_optimizer

_STEPS = 10
"""Steps after which an optimizer has all that it ever keeps; Lookahead's slow weights come with the sixth."""

_DECIDED_ELSEWHERE = ("params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable")
"""Entries of a group that the schedule or the device decides."""

_State = Mapping[str, Any]  # of `optimizer.state_dict()`


def load_optimizer_(optimizer: Any, state: _State, path: Path) -> None:
    """Restore a new optimizer from a checkpoint, in place; its state is sharded like the parameters.

    The optimizer makes steps on stand-ins first. They show what it keeps of each parameter, and whether it can make a
    step from the file's state, so that no wrong state fails in training.

    Args:
        optimizer: Of this run; it has made no step.
        state: Of `optimizer.state_dict()`, whole.
        path: The checkpoint's file, for the message.

    Raises:
        UsageError: The state is another optimizer's, or damaged.
    """
    plain = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    try:
        device, first, last = _what_steps_leave(plain)
        _check_groups(state["param_groups"], first["param_groups"], last["param_groups"])
        _check_settings(state["param_groups"], *(each["param_groups"] for each in (plain.state_dict(), first, last)))
        _check_parameters(state["state"], first["state"], last["state"])
        with _on_stand_ins(plain, device):
            plain.load_state_dict(_without_values(state, device))
            plain.step()
        optimizer.load_state_dict(share_out_optimizer(dict(state), optimizer))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UsageError(
            f"`checkpoint` must hold the state of this optimizer, got {shown_name(path)} ({first_line(error)}): take "
            "another copy, or train again in another --out"
        ) from error


def load_scaler_(scaler: Any | None, state: Mapping[str, Any] | None, path: Path) -> None:
    """Restore a loss scaler of 16-bit training, if there is one, in place.

    Raises:
        UsageError: The state is not a loss scaler's.
    """
    if scaler is None or state is None:
        return
    own = scaler.state_dict()
    changing = {"scale", "_growth_tracker"}  # the others are settings
    valid = state.keys() == own.keys() and all(
        _has_form_of(each, own[name]) and each >= 0 if name in changing else each == own[name]
        for name, each in state.items()
    )
    if not valid:
        raise UsageError(
            f"`checkpoint` must hold the state of this loss scaler, got {shown_name(path)} with {shown(dict(state))}: "
            "take another copy, or train again in another --out"
        )
    scaler.load_state_dict(dict(state))


def _what_steps_leave(optimizer: torch.optim.Optimizer) -> tuple[str, _State, _State]:
    """Return a device where the optimizer can step on stand-ins, and its state after the first and the last step.

    On the meta device stand-ins take no memory, but some optimizers look at values, and some need a GPU.
    """
    own = str(optimizer.param_groups[0]["params"][0].device)
    devices = dict.fromkeys(("meta", "cpu", own))
    for device in devices:
        try:
            with _on_stand_ins(optimizer, device):
                optimizer.step()
                first = _without_values(optimizer.state_dict(), device)
                for _ in range(1, _STEPS):
                    optimizer.step()
                return device, first, _without_values(optimizer.state_dict(), device)
        except (RuntimeError, AssertionError):
            if device == [*devices][-1]:
                raise
    raise AssertionError("there is always a device")


@contextmanager
def _on_stand_ins(optimizer: torch.optim.Optimizer, device: str) -> Iterator[None]:
    """Let the optimizer, for a while, have tensors with a gradient of ones in the place of its parameters."""
    own = [group["params"] for group in optimizer.param_groups]
    before = copy.deepcopy(optimizer.state_dict())
    _restart_(optimizer, [[_stand_in(each, device) for each in group] for group in own], before)
    try:
        yield
    finally:
        _restart_(optimizer, own, before)


def _restart_(optimizer: torch.optim.Optimizer, parameters: list[list[Tensor]], state: _State) -> None:
    for group, own in zip(optimizer.param_groups, parameters, strict=True):
        group["params"] = own
    optimizer.load_state_dict(dict(state))  # what was kept of other tensors is kept of these


def _stand_in(parameter: Tensor, device: str) -> Tensor:
    made = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device, requires_grad=True)
    made.grad = torch.ones_like(made)
    return made


def _without_values(state: _State, device: str) -> dict[str, Any]:
    """Return a state with new tensors on a device, without values but of single numbers: steps change them in place."""
    entries = {
        index: {name: _new(value, device) if isinstance(value, Tensor) else value for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {"state": entries, "param_groups": copy.deepcopy(state["param_groups"])}


def _new(tensor: Tensor, device: str) -> Tensor:
    return tensor.clone() if tensor.numel() == 1 else torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)


def _check_groups(
    found: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]
) -> None:
    """Check that a file has all that the optimizer keeps of its groups, in the same form, and nothing else.

    Raises:
        ValueError: It has not.
    """
    if len(found) != len(last):
        raise ValueError(f"it has {len(found)} groups of parameters, not {len(last)}")
    for theirs, least, ours in zip(found, first, last, strict=True):
        if theirs["params"] != ours["params"]:
            raise ValueError("its groups have other parameters")
        _check_names(theirs, least, ours)
        for name, value in theirs.items():
            if name != "params" and ours[name] is not None:  # a default that torch chooses at each step
                _check_form(name, value, ours[name])


def _check_settings(found: Sequence[Mapping[str, Any]], *own: Sequence[Mapping[str, Any]]) -> None:
    """Check that what steps do not change is as the run's settings say, and not as the file does.

    Args:
        found: The file's groups, of the right form.
        *own: This optimizer's at several times.

    Raises:
        ValueError: It is not.
    """
    for theirs, *ours in zip(found, *own, strict=True):
        for name, value in ours[0].items():
            plain = isinstance(value, (bool, int, float, str, tuple, list)) and name not in _DECIDED_ELSEWHERE
            if plain and all(each[name] == value for each in ours) and not _same(theirs[name], value):
                raise ValueError(f"its {name} is {_described(theirs[name])}, where this optimizer has {shown(value)}")


def _same(value: Any, own: Any) -> bool:
    return list(value) == list(own) if isinstance(own, (tuple, list)) else bool(value == own)


def _check_parameters(found: _State, first: _State, last: _State) -> None:
    """Check that a file has what the optimizer keeps of each parameter; of those without a gradient it keeps nothing.

    Raises:
        ValueError: It has not.
    """
    if any(first.values()) and not any(found.values()):
        raise ValueError("it has no state of any parameter")
    for index, theirs in found.items():
        ours = last.get(index, {})
        _check_names(theirs, first.get(index, {}) if theirs else {}, ours)
        for name, value in theirs.items():
            _check_form(name, value, ours[name])


def _check_names(found: Collection[str], least: Collection[str], most: Collection[str]) -> None:
    for what, names in (
        ("it lacks", [each for each in least if each not in found]),
        ("this optimizer does not keep its", [each for each in found if each not in most]),
    ):
        if names:
            raise ValueError(f"{what} {few(names)}")


def _check_form(name: str, value: Any, own: Any) -> None:
    if not _has_form_of(value, own):
        raise ValueError(f"its {name} is {_described(value)}, where this optimizer has {_described(own)}")
    if isinstance(value, Tensor) and not bool(value.isfinite().all()):
        raise ValueError(f"not all values of its {name} are finite")
    if name == "step" and bool((torch.as_tensor(value) < 0).any()):  # whose powers would be roots of negative numbers
        raise ValueError(f"its {name} is below 0")


def _has_form_of(value: Any, own: Any) -> bool:
    if isinstance(own, Tensor):
        return isinstance(value, Tensor) and value.shape == own.shape and _kind(value) == _kind(own)
    if isinstance(own, (tuple, list)):
        return isinstance(value, (tuple, list)) and len(value) == len(own) and all(map(_has_form_of, value, own))
    if isinstance(own, bool) or not isinstance(own, (int, float)):
        return isinstance(value, type(own))
    return is_finite_number(value)


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return whether values are whole numbers, real or complex ones; how exact they are may differ."""
    return tensor.is_floating_point(), tensor.is_complex()


def _described(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
