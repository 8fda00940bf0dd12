"""What a load would do, found out before anything is changed, or why it cannot be done."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from condconv.errors import UsageError, few
from condconv.nn import ConditionalLayer, SigmoidRouting
from condconv.nn.block_routing import routing_functions
from condconv.nn.conditional import conditional_layers
from condconv.weights.arithmetic import check_arithmetic, known_source
from condconv.weights.diagnosis import Misfit, diagnose
from condconv.weights.fit import Fit, fit_tensors, mixed_routing
from condconv.weights.names import BY_ORDER, Matched, first_names, match_names, own_tensors
from condconv.weights.write import check_starts


@dataclass(frozen=True)
class Plan:
    """A load that can be done.

    Attributes:
        matched: The source's tensors under the network's names.
        fit: What they are for the network.
        skipped: Names of the network that stay as they are.
    """

    matched: Matched
    fit: Fit
    skipped: tuple[str, ...]


def plan_load(model: nn.Module, state: Mapping[str, Tensor], skip: tuple[str, ...], source: str) -> Plan:
    """Return what loading a source would do.

    Args:
        model: The network.
        state: The source's tensors by name.
        skip: Patterns of names to leave as they are.
        source: What to call the source in messages.

    Raises:
        UsageError: It does not fit, or a pattern matches nothing.
    """
    _check_memory(model)
    matched, skipped = _leave_out(model, match_names(model, state), state, skip)
    fit = fit_tensors(model, matched.tensors)
    fit = replace(fit, missing=tuple(name for name in fit.missing if name not in (*skipped, *matched.clashes)))
    problems = _problems(model, matched, fit)
    if problems:
        raise UsageError(
            f"`path` must hold weights of this network, got {source}: {'; '.join(problems)}. "
            f"Probably {diagnose(Misfit(model, state, matched, fit))}"
        )
    known = known_source(state) if matched.how == BY_ORDER else None
    if known is not None:
        whose, arithmetic = known
        check_arithmetic(model, arithmetic, f"{source}, which looks like {whose}")
    _check_trained_routing(model, matched, source, skipped)
    _check_skipped_routing(model, fit, skipped)
    check_starts(model, fit.static)
    return Plan(matched, fit, skipped)


def _check_memory(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, ConditionalLayer) and module.compact:
            raise UsageError(
                f"`model` must have ordinary experts, those of {name!r} are compact: load the weights first, then call "
                "condconv.quantize_experts_"
            )
    for name, value in model.state_dict(keep_vars=True).items():
        if is_lazy(value):
            raise UsageError(f"`model` must have its parameters, {name!r} waits for a first input: run the model once")
        if getattr(value, "is_meta", False):
            raise UsageError(
                f"`model` must have memory to load into, {name!r} is on the meta device: call "
                "model.to_empty(device=...) first, or create it on a device"
            )
        if hasattr(value, "device_mesh"):
            raise UsageError(f"`model` must not be sharded, {name!r} is: load the weights first, then shard it")


def _leave_out(
    model: nn.Module, matched: Matched, state: Mapping[str, Tensor], skip: tuple[str, ...]
) -> tuple[Matched, tuple[str, ...]]:
    """Return what was matched without what is to be skipped, and the names of the network that are."""
    firsts = first_names(model)
    for pattern in skip:
        if not fnmatch.filter([*firsts, *state], pattern):
            raise UsageError(f"`skip` must match names of the network or the file, {pattern!r} matches none")

    def asked(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)

    named = {firsts[name] for name in firsts if asked(name) or asked(matched.sources.get(name, name))}
    # A file has no name for the routing of a layer that it has one kernel for.
    layers = [f"{name}." for name in conditional_layers(model)]
    whole = tuple(layer for layer in layers if f"{layer}weight" in named)
    skipped = tuple(name for name in own_tensors(model) if name in named or name.startswith(whole))
    left = replace(
        matched,
        tensors={name: tensor for name, tensor in matched.tensors.items() if name not in skipped},
        unknown=tuple(name for name in matched.unknown if not asked(name)),
        clashes={name: sources for name, sources in matched.clashes.items() if name not in skipped},
    )
    return left, skipped


def _problems(model: nn.Module, matched: Matched, fit: Fit) -> list[str]:
    own = model.state_dict()
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
    return problems + list(mixed_routing(model, fit).values())[:1]


def _check_trained_routing(model: nn.Module, matched: Matched, source: str, skipped: tuple[str, ...]) -> None:
    """Refuse a routing trained as another function than the network's, as far as names tell."""
    names = {module: name for name, module in model.named_modules()}
    own = own_tensors(model).keys() - {*matched.tensors, *skipped}
    for function in dict.fromkeys(routing_functions(model).values()):
        weight = f"{names[function]}.fc.weight"
        theirs = matched.sources[weight] if weight in matched.tensors else ""
        if theirs.endswith(".routing_fn.weight") and not isinstance(function, SigmoidRouting):  # timm's, TensorFlow's
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


def _check_skipped_routing(model: nn.Module, fit: Fit, skipped: tuple[str, ...]) -> None:
    """Refuse to keep a routing, or a layer of one, whose other layers start from one kernel: it has to start evenly."""
    routing = routing_functions(model)
    names = {module: name for name, module in model.named_modules()}
    starting = {routing.get(layer.routing_fn) for layer in map(model.get_submodule, fit.static)}  # type: ignore[arg-type]
    for module, name in names.items():
        if not isinstance(module, ConditionalLayer) or routing.get(module.routing_fn) not in starting:
            continue
        function = names[routing[module.routing_fn]]
        kept = [each for each in skipped if each == f"{name}.weight" or each.startswith(f"{function}.")]
        if kept and name + ".weight" not in fit.copies:
            raise UsageError(
                f"`skip` must leave layers that share a routing together, got {kept[0]}: its routing starts anew, "
                "since other layers start from one kernel"
            )
