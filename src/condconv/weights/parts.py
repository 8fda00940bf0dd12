"""Whole parts that a source has and the network lacks, or the reverse, and how to leave them out by name."""

from __future__ import annotations

from collections.abc import Iterable

from condconv.errors import few
from condconv.weights.layers import common_parts
from condconv.weights.misfit import Misfit

_MOST = 8  # patterns in a message
_OF_LAYERS = ("weight", "bias", "running_mean", "running_var")


def parts_in_the_network_alone(misfit: Misfit) -> str | None:
    """Describe whole parts of the network, or tensors next to its layers, that a source lacks."""
    fit, layers = misfit.fit, misfit.layers
    if not fit.missing or fit.misfits or misfit.matched.unknown or misfit.matched.clashes:
        return None
    patterns = _patterns(fit.missing, layers.tensors.keys() - {*fit.missing})
    # A network with more blocks has parts more too: only what is next to all other parts is reported.
    depth = len(common_parts(layers.first)) + 1
    deep = misfit.is_of_other_layers and any(pattern.count(".") > depth for pattern in patterns)
    if deep or not patterns or any(layers.routes(name) for name in fit.missing):
        return None
    return f"it was saved without these: pass skip={','.join(patterns)!r} to keep the network's own"


def parts_in_the_source_alone(misfit: Misfit) -> str | None:
    """Describe whole parts of the source that the network lacks, such as a classifier, but not parts of layers."""
    matched = misfit.matched
    if not _is_complete(misfit):
        return None
    # The part that a tensor belongs to is the first name after those which all of the source's have in common.
    common = len(common_parts(misfit.state))
    parts = {name: ".".join(name.split(".")[: common + 1]) for name in misfit.state}
    more = dict.fromkeys(parts[name] for name in matched.unknown)
    if not more or more.keys() & {*misfit.state, *(parts[name] for name in matched.sources.values())}:
        return None
    patterns = few([f"{part}.*" for part in more], most=_MOST, between=",")
    return (
        "its network has more layers than this one, which has no classifier (num_classes=0) or gives features only: "
        f"pass skip={patterns!r} to leave the rest out"
    )


def tensors_in_the_source_alone(misfit: Misfit) -> str | None:
    """Describe tensors next to all layers, if everything else fits."""
    matched = misfit.matched
    inside = any(misfit.layers.routes(name.removeprefix(matched.prefix)) for name in matched.unknown)
    if not _is_complete(misfit) or misfit.is_of_other_layers or inside:
        return None
    patterns = _patterns(matched.unknown, misfit.state.keys() - {*matched.unknown})
    if not patterns:
        return None
    return (
        f"it is this network's with more: pass skip={','.join(patterns)!r} to leave that out, if the "
        "network computes the same without"
    )


def _is_complete(misfit: Misfit) -> bool:
    found = misfit.matched.tensors and misfit.matched.unknown
    return bool(found) and not (misfit.fit.missing or misfit.fit.misfits or misfit.matched.clashes)


def _patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return patterns that match only these names, or none if a part of a layer would be left out."""
    patterns = list(dict.fromkeys(_largest_part(name, others) for name in names))
    halves = any(not each.endswith("*") and each.rpartition(".")[2] in _OF_LAYERS for each in patterns)
    return [] if halves or len(patterns) > _MOST else patterns


def _largest_part(name: str, others: Iterable[str]) -> str:
    """Return a pattern of the largest part that contains only this name, or the name itself."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        part = ".".join(parts[:length]) + "."
        if not any(other.startswith(part) for other in others):
            return f"{part}*"
    return name
