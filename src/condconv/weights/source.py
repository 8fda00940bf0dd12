"""The source of a load: tensors by name, and how they were obtained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError, few, shown
from condconv.weights.averages import Entry, Found
from condconv.weights.entries import find_weights, holders
from condconv.weights.files import check_size
from condconv.weights.layers import Layers
from condconv.weights.reparametrized import plain_weights

_LONGEST_NAME = 500


@dataclass(frozen=True)
class Source:
    """Weights to load.

    Attributes:
        name: What to call them in messages.
        tensors: By the source's names, dense, on their devices, in the source's order.
        notes: What was chosen or computed, for the report.
    """

    name: str
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def find_source(loaded: Any, name: str, layers: Layers, averaged: bool) -> Source:
    """Return the weights inside what a file holds, as plain tensors.

    Args:
        loaded: A mapping, or mappings in mappings; all other entries are ignored.
        name: What to call it in messages.
        layers: The network.
        averaged: Whether to take averaged weights if there are both.

    Raises:
        UsageError: There are none, or only averaged ones although plain ones are requested, or one has no values.
    """
    entry, name, notes = _choose(find_weights(loaded, layers.has), loaded, name, averaged)
    for each, tensor in entry.tensors.items():
        if len(each) > _LONGEST_NAME or not each.isprintable():
            raise UsageError(
                f"`path` must hold tensors by a network's names, got {name} with {shown(each)}: take another copy"
            )
        what = _why_no_values(tensor)
        if what is not None:
            raise UsageError(
                f"`path` must hold values, got {name} with {what}, in {shown(each)}: save the network before it is "
                "emptied, nested or quantized"
            )
        if tensor.layout != torch.strided:
            check_size(each, tensor.shape, layers.most_entries, name)
    dense = {each: t if t.layout == torch.strided else t.to_dense() for each, t in entry.tensors.items()}
    plain, computed = plain_weights(dense, layers.knows)
    notes += [f"computed from the parts of {how}: {few(weights)}" for how, weights in computed.items()]
    return Source(name, plain, tuple(notes))


def _why_no_values(tensor: Tensor) -> str | None:
    """Return why a tensor has no dense values, or `None` if it has them."""
    if tensor.is_nested:
        return "nested tensors"
    if tensor.is_quantized:
        return f"quantized ones, {tensor.dtype}"
    return "no values, on the meta device" if tensor.is_meta else None


def _choose(found: Found, loaded: Any, name: str, averaged: bool) -> tuple[Entry, str, list[str]]:
    """Return the weights to take, what to call them, and notes."""
    plain, average = found.plain, found.averaged
    if average is None:
        if plain is None:
            raise UsageError(_why_none(loaded, name))
        return plain, name, []
    under = shown(average.name)
    if plain is None:
        if not averaged:
            raise UsageError(
                f"`averaged` must be True for {name}, got False: it has only averaged weights, under {under}; leave "
                "`averaged` out"
            )
        return average, name, [f"these are averaged weights, under {under}: there are no others"]
    rest = shown(plain.name) if plain.name else "their own names"
    if averaged:
        taken, other = average, plain
        note = f"averaged weights were taken, under {under}: averaged=False takes the plain ones, under {rest}"
        name = f"{name} (its averaged weights, under {under}; averaged=False takes those under {rest})"
    else:
        taken, other = plain, average
        note = f"plain weights were taken, under {rest}, as asked; there are averaged ones under {under}"
    notes = [note]
    if found.others:
        notes.append(f"there are other averages, under {few(map(shown, found.others))}")
    if taken.tensors.keys() < other.tensors.keys():  # averages of parameters alone: buffers are the network's
        notes.append(f"{len(other.tensors) - len(taken.tensors)} tensors of which there is one alone were taken too")
        taken = Entry(taken.name, {**other.tensors, **taken.tensors})
    return taken, name, notes


def _why_none(loaded: Any, name: str) -> str:
    held = holders(loaded)
    if held:
        part = f"load_state_dict(model, torch.load(path, weights_only=True)[{shown(held[0])}])"
        return (
            f"`path` must hold the weights of one network, got {name} with tensors under {shown(few(held))}: say which "
            f"you want, as in condconv.weights.{part}"
        )
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
    else:
        kind = f"a mapping with {shown(', '.join(map(str, loaded)), 200)[1:-1]}" if loaded else "an empty mapping"
    return f"`path` must hold tensors by name, got {name} with {kind}: save model.state_dict()"
