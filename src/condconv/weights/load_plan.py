"""What a load will do, or why it cannot be done, determined before anything changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from condconv.errors import UsageError, few, shown
from condconv.nn import ConditionalLayer, DeltaExperts, LayerChoice, SigmoidRouting
from condconv.nn.choice import choose_named
from condconv.weights.arithmetic import check_arithmetic, known_source
from condconv.weights.diagnosis import diagnose
from condconv.weights.fit import Fit, fit_tensors, mixed_routing
from condconv.weights.layers import Layers
from condconv.weights.leftovers import leave_out, leave_out_siblings
from condconv.weights.misfit import Misfit
from condconv.weights.names import BY_ORDER, Matched, match_names
from condconv.weights.source import Source
from condconv.weights.values import check_values
from condconv.weights.write import check_starts


@dataclass(frozen=True)
class LoadPlan:
    """A load that can be done.

    Attributes:
        matched: The source's tensors under the network's names.
        fit: What they are for the network.
        skipped: Names of the network that stay as they are.
        notes: What was chosen, computed or left out, for the report.
    """

    matched: Matched
    fit: Fit
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def look_at(model: nn.Module) -> Layers:
    """Return a network as a load sees it.

    Raises:
        UsageError: It cannot be loaded into.
    """
    _check_memory(model)
    return Layers(model)


def plan_load(layers: Layers, source: Source, skip: LayerChoice | None) -> LoadPlan:
    """Return what loading a source would do.

    Args:
        layers: The network.
        source: What to load.
        skip: What to leave as it is, as in `load_pretrained`.

    Raises:
        UsageError: It does not fit, or a pattern matches nothing.
    """
    state, notes = leave_out(layers, source.tensors)
    matched, skipped = _skip(layers, match_names(layers, state), source.tensors, skip)
    fit = fit_tensors(layers, matched.tensors)
    fit = replace(fit, missing=tuple(name for name in fit.missing if name not in (*skipped, *matched.clashes)))
    matched, more = leave_out_siblings(layers, matched, fit, state, source.name)
    problems = _problems(layers, matched, fit)
    if problems:
        raise UsageError(
            f"`path` must hold weights of this network, got {source.name}: {'; '.join(problems)}. "
            f"Probably {diagnose(Misfit(layers, state, matched, fit))}"
        )
    check_values(layers, matched, source.name)
    known = known_source(state) if matched.how == BY_ORDER else None
    if known is not None:
        whose, arithmetic = known
        check_arithmetic(layers.model, arithmetic, f"{source.name}, which looks like {whose}")
    _check_trained_routing(layers, matched, source.name, skipped)
    _check_skipped_routing(layers, fit, skipped)
    check_starts(layers, fit.static)
    return LoadPlan(matched, fit, skipped, (*source.notes, *notes, *more, *_other_scales(layers, matched)))


def _other_scales(layers: Layers, matched: Matched) -> list[str]:
    """Say that differences will count by another scale than the network was made with: it belongs to their weights."""
    other = []
    for name, found in matched.tensors.items():
        holder, _, entry = layers.first[name].rpartition(".")
        if entry == "scale" and isinstance(layers.modules.get(holder), DeltaExperts):
            own, theirs = layers.tensors[name].item(), found.item()
            if not math.isclose(own, theirs, rel_tol=0.01):  # more than what bf16 makes of the same
                other.append(f"the scale of its differences was taken too, {theirs:.3g} in place of {own:.3g}")
    return list(dict.fromkeys(other))


def _check_memory(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, ConditionalLayer) and module.experts.quantized:
            raise UsageError(
                f"`model` must have ordinary experts, got quantized ones in {name!r}: load the weights first, then "
                "call condconv.quantize_experts_"
            )
    for name, value in model.state_dict(keep_vars=True).items():
        if is_lazy(value):
            raise UsageError(
                f"`model` must have its parameters, got {name!r}, which waits for a first input: run the model once"
            )
        if getattr(value, "is_meta", False):
            raise UsageError(
                f"`model` must have memory to load into, got {name!r} on the meta device: call "
                "model.to_empty(device=...) first, or create it on a device"
            )
        if hasattr(value, "device_mesh"):
            raise UsageError(
                f"`model` must be whole, got {name!r}, which is sharded: load the weights first, then shard"
            )


def _skip(
    layers: Layers, matched: Matched, state: Mapping[str, Tensor], skip: LayerChoice | None
) -> tuple[Matched, tuple[str, ...]]:
    """Return the matched tensors without the skipped ones, and the skipped names of the network."""
    if skip is None:
        return matched, ()
    firsts = layers.first
    holders = {name: layers.modules.get(first.rpartition(".")[0]) for name, first in firsts.items()}
    called = dict(zip(firsts, layers.own_names(firsts), strict=True))
    tensors = {**dict.fromkeys(state), **holders, **{called[name]: holder for name, holder in holders.items()}}
    asked = choose_named(tensors, skip, argument="skip", kind="names of the network or the file").keys()
    named = {firsts[name] for name in firsts if {name, called[name], matched.sources.get(name, name)} & asked}
    # A file has no name for the routing of a layer that it has one kernel for.
    conditional = [f"{name}." for name in layers.conditional]
    whole = tuple(layer for layer in conditional if f"{layer}weight" in named)
    skipped = tuple(name for name in layers.tensors if name in named or name.startswith(whole))
    left = replace(
        matched,
        tensors={name: tensor for name, tensor in matched.tensors.items() if name not in skipped},
        unknown=tuple(name for name in matched.unknown if name not in asked),
        clashes={name: sources for name, sources in matched.clashes.items() if name not in skipped},
    )
    return left, skipped


def _problems(layers: Layers, matched: Matched, fit: Fit) -> list[str]:
    own = layers.tensors
    shapes = [
        f"{matched.sources[name]} {list(matched.tensors[name].shape)} (the network's: {list(own[name].shape)})"
        for name in fit.misfits
    ]
    # Whole numbers for weights are those of a quantized network, whose scales are elsewhere.
    kinds = [
        f"{matched.sources[name]} ({tensor.dtype})"
        for name, tensor in matched.tensors.items()
        if own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    clashes = [f"{target} ({few(sources)})" for target, sources in matched.clashes.items()]
    found = (
        ("it lacks ", fit.missing),
        ("the network has no ", matched.unknown),
        ("of another shape: ", shapes),
        ("not of real numbers: ", kinds),
        ("it has several values for ", clashes),
    )
    problems = [what + few(names, most=3) for what, names in found if names]
    return problems + list(mixed_routing(layers, fit).values())[:1]


def _check_trained_routing(layers: Layers, matched: Matched, source: str, skipped: tuple[str, ...]) -> None:
    """Refuse routing that was trained with another function than the network's, as far as names show it."""
    names = layers.names
    own = layers.tensors.keys() - {*matched.tensors, *skipped}
    for function in dict.fromkeys(layers.routing.values()):
        weight = f"{names[function]}.fc.weight"
        theirs = matched.sources[weight] if weight in matched.tensors else ""
        if theirs.endswith(".routing_fn.weight") and not _is_plain(function):  # timm's, TensorFlow's
            raise UsageError(
                f"`model` must route by a sigmoid of one linear layer to take {theirs} of {source}, got "
                f'{type(function).__name__}: create the network with routing="sigmoid"'
            )
        lacking = own & {f"{names[function]}.{name}" for name, _ in function.named_buffers()}
        if theirs.endswith(".routing_fn.fc.weight") and lacking:  # ours, which would have saved them
            raise UsageError(
                f"`model` must route as {source} was trained to, which lacks {min(lacking)}, got "
                f"{type(function).__name__}: create the network with the routing of that run"
            )


def _is_plain(function: nn.Module) -> bool:
    """Whether a function is a sigmoid of one linear layer of the pooled input as it is."""
    return isinstance(function, SigmoidRouting) and function.standardization is None


def _check_skipped_routing(layers: Layers, fit: Fit, skipped: tuple[str, ...]) -> None:
    """Refuse to keep a routing, or a layer of one, whose other layers start from one kernel: it has to start evenly."""
    starting = {layers.function(name) for name in fit.static}
    for name in layers.conditional:
        if layers.function(name) not in starting:
            continue
        function = layers.names[layers.function(name)]
        kept = [each for each in skipped if each == f"{name}.weight" or each.startswith(f"{function}.")]
        if kept and name + ".weight" not in fit.copies:
            raise UsageError(
                f"`skip` must leave layers that share a routing together, got {shown(kept[0])}: its routing starts "
                "again, since other layers start from one kernel; skip all of them, or none"
            )
