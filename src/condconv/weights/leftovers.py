"""Entries of a source that are not a network's weights and may be left out, by a rule; the report lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from condconv.errors import UsageError, few, shown
from condconv.weights.averages import words
from condconv.weights.fit import Fit
from condconv.weights.layers import Layers
from condconv.weights.names import Matched

_TRAINING_ONLY = {"aux", "auxiliary", "loss", "losses", "criterion", "criteria", "metric", "metrics"}
_COUNTERS = ("total_ops", "total_params")  # of the profiler thop, in every layer
_STATISTICS = {"mean", "std"}
_OF_IMAGES = _STATISTICS | {"pixel", "image", "img", "input", "norm", "rgb"}


def leave_out(layers: Layers, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a source without the entries that no network computes with, and notes that list them.

    These are: profilers' counters; the mean and standard deviation of images, by which the network's own code
    normalises; auxiliary heads and losses, which are for training only. Entries that the network has are kept.

    Args:
        layers: The network.
        state: The source's tensors by name.
    """
    left: dict[str, list[str]] = {}
    for name, tensor in state.items():
        reason = _why_not_needed(layers, name, tensor)
        if reason is not None:
            left.setdefault(reason, []).append(name)
    out = {name for names in left.values() for name in names}
    kept = {name: tensor for name, tensor in state.items() if name not in out}
    return kept, [f"left out {few(names)}: {reason}" for reason, names in left.items()]


def _why_not_needed(layers: Layers, name: str, tensor: Tensor) -> str | None:
    """Return why a network does not need a tensor of a source, in words for the report, or `None`."""
    *owners, leaf = name.split(".")
    if leaf in _COUNTERS and not layers.has(leaf):
        return "counters of a profiler"
    if layers.routes(name):
        return None
    if any(words(owner) & _TRAINING_ONLY and not layers.has_part(owner) for owner in owners):
        return "parts for training only, which the network does not have"
    if _is_of_images(leaf, tensor) and not layers.has(leaf):
        return "the network does not normalise images, so give it images that are normalised by these"
    return None


def _is_of_images(leaf: str, tensor: Tensor) -> bool:
    return bool(words(leaf) & _STATISTICS) and words(leaf) <= _OF_IMAGES and tensor.numel() in (1, 3, 4)


def leave_out_siblings(
    layers: Layers, matched: Matched, fit: Fit, state: Mapping[str, Tensor], source: str
) -> tuple[Matched, list[str]]:
    """Return the matched tensors without those next to a complete network, and a note.

    A trainer's file has the network under a name, such as `model.`, and next to it what training needs.

    Args:
        layers: The network.
        matched: The source's tensors under the network's names.
        fit: How they fit.
        state: The source's tensors by name.
        source: What to call the source in messages.

    Raises:
        UsageError: The source has several such networks.
    """
    siblings = [name for name in matched.unknown if not name.startswith(matched.prefix)]
    if not matched.prefix or not siblings or fit.missing or fit.misfits or matched.clashes:
        return matched, []
    others = {f"{name.partition('.')[0]}." for name in siblings if "." in name}
    whole = {name.removeprefix(matched.prefix) for name in matched.sources.values()}
    for other in sorted(others):
        if whole <= {name.removeprefix(other) for name in state if name.startswith(other)}:
            raise UsageError(
                f"`path` must hold one network, got {source} with one under {shown(matched.prefix)} and one under "
                f"{shown(other)}: give condconv.weights.load_state_dict the tensors of one of them"
            )
    unknown = tuple(name for name in matched.unknown if name.startswith(matched.prefix))
    note = f"left out {few(siblings)}: they stand next to the network, which is under {matched.prefix!r}"
    return replace(matched, unknown=unknown), [note]
