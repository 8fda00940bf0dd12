"""Match a source's names with the network's: by prefix, by the names of common ports, or by order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condconv.nn import ConditionalLayer
from condconv.nn.classes import is_conv, is_linear, static_class
from condconv.weights.layers import Layers, common_parts

BY_ORDER = "by kind and order"
"""How names were matched where they are not the network's own at all."""

# What ports call a layer's experts and their biases.
_EXPERTS = re.compile(r"(?P<layer>.+)\.(experts(\.weight)?|expert_weights?|kernels?|weights|condconv_kernel)")
_BIASES = re.compile(r"(?P<layer>.+)\.(experts\.bias|expert_bias(es)?|biases|condconv_bias)")
# And its routing function, whose one linear layer is all of it.
_ROUTING = re.compile(r"(?P<owner>(.+\.)?)_?(routing\w*|router|attention)(\.\w+)*\.(?P<leaf>weight|bias)")


@dataclass(frozen=True)
class Matched:
    """A source's tensors under the network's names.

    Attributes:
        tensors: By the network's names.
        sources: What the source calls them.
        unknown: Names that the network lacks.
        how: How names were matched, for the report.
        prefix: The prefix that was removed from the source's names.
        clashes: Names of the network for which the source has several different tensors, with the source's names.
    """

    tensors: dict[str, Tensor]
    sources: dict[str, str]
    unknown: tuple[str, ...]
    how: str
    prefix: str = ""
    clashes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def match_names(layers: Layers, state: Mapping[str, Tensor]) -> Matched:
    """Match the names of a source with those of a network.

    First by name: prefixes common to the source's names and to the network's are ignored, and the names that ports give
    experts and routing are known. If this finds hardly any convolution, by order: all convolutions, all norms and all
    linear layers of the source against those of the network, if their numbers agree; either may lack the linear layers.

    Args:
        layers: The network.
        state: Tensors by name, in the source's order.
    """
    around = common_parts(layers.first)
    wrappers = ["".join(f"{part}." for part in around[:length]) for length in range(len(around) + 1)]
    by_name = max((_by_name(layers, state, wrapper) for wrapper in wrappers), key=lambda match: len(match.tensors))
    convs = [name for name, module in layers.modules.items() if is_conv(module) or isinstance(module, ConditionalLayer)]
    found = sum(f"{name}.weight" in by_name.tensors for name in convs)
    if found * 2 >= len(convs):
        return by_name
    return _by_order(layers, state) or by_name


def _by_name(layers: Layers, state: Mapping[str, Tensor], wrapper: str) -> Matched:
    """Match by name; all names of the network may begin with the name of a wrapper that the source does not have."""
    own = {_uncompiled(name.removeprefix(wrapper)): first for name, first in layers.first.items()}
    modules = {_uncompiled(name.removeprefix(wrapper)): module for name, module in layers.modules.items()}
    spelled = {
        _uncompiled(full.removeprefix(wrapper)): name
        for full, name in zip(layers.own_names(layers.first), own, strict=True)
    }
    renamed = {prefix: _rename(modules, spelled, state, prefix) for prefix in sorted(_prefixes(state))}
    best = max(renamed, key=lambda prefix: (sum(name in own for name in renamed[prefix].values()), -len(prefix)))
    places: dict[str, list[str]] = {}
    for source, name in renamed[best].items():
        if name in own:
            places.setdefault(own[name], []).append(source)
    # Layers that share a tensor have it under several names, and all of them say the same.
    clashes = {
        target: tuple(sources)
        for target, sources in places.items()
        if not all(_equal(state[sources[0]], state[other]) for other in sources[1:])
    }
    sources = {target: sources[0] for target, sources in places.items() if target not in clashes}
    unknown = tuple(name for name in state if renamed[best].get(name) not in own)
    how = ", ".join(["by name", *([f"without {best!r}"] if best else []), *([f"under {wrapper!r}"] if wrapper else [])])
    return Matched({target: state[source] for target, source in sources.items()}, sources, unknown, how, best, clashes)


def _equal(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return one is other or (alike and torch.equal(one.cpu(), other.cpu()))


def _prefixes(state: Mapping[str, Tensor]) -> set[str]:
    """Return the prefixes that wrappers may have put before the names, such as `module.`."""
    prefixes = {""}
    for name in state:
        parts = name.split(".")[:-1]
        prefixes |= {".".join(parts[:length]) + "." for length in range(1, min(len(parts), 3) + 1)}
    return prefixes


def _rename(
    modules: Mapping[str, nn.Module], own: Mapping[str, str], state: Mapping[str, Tensor], prefix: str
) -> dict[str, str]:
    """Return the network's names for the source's names under a prefix.

    Args:
        modules: Of the network, by name.
        own: What a load calls the network's tensors, by their names in its state dict.
        state: The source.
        prefix: Of names in the source.
    """
    names = {source: _uncompiled(source.removeprefix(prefix)) for source in state if source.startswith(prefix)}
    names = {source: own.get(name, name) for source, name in names.items()}
    # What has the network's own name is meant; a port's name for the same place is then something else.
    exact = {*own.values()} & {*names.values()}
    aliases = {source: _known_alias(modules, name) for source, name in names.items()}
    return {source: name if aliases[source] in exact else aliases[source] for source, name in names.items()}


def _uncompiled(name: str) -> str:
    """Return a name without what torch.compile inserts for compiled parts of a network."""
    return name.replace("._orig_mod.", ".")


def _known_alias(modules: Mapping[str, nn.Module], name: str) -> str:
    for pattern, leaf in ((_EXPERTS, "weight"), (_BIASES, "bias")):
        match = pattern.fullmatch(name)
        layer = None if match is None else modules.get(match["layer"])
        if match is not None and layer is not None and static_class(layer) is not None:
            return f"{match['layer']}.{leaf}"
    match = _ROUTING.fullmatch(name)
    if match is not None:
        routing = modules.get(f"{match['owner']}routing_fn")
        if routing is not None and {child for child, _ in routing.named_children()} - {"standardization"} == {"fc"}:
            return f"{match['owner']}routing_fn.fc.{match['leaf']}"
    return name


def _by_order(layers: Layers, state: Mapping[str, Tensor]) -> Matched | None:
    """Match each kind of layer in order, or return `None` if the numbers or the shapes do not fit."""
    own = layers.tensors
    theirs, ours = _group(_source_layers(state)), _group(_own_layers(layers))
    for kind in {*theirs, *ours}:
        counts = len(theirs.get(kind, ())), len(ours.get(kind, ()))
        if counts[0] != counts[1] and not (kind == "linear" and 0 in counts):  # one may be without a classifier
            return None
    targets_of = {
        source: target
        for kind in theirs
        if kind in ours
        for source, target in zip(theirs[kind], ours[kind], strict=True)
    }
    targets = {}
    for name in state:
        layer, _, leaf = name.rpartition(".")
        if layer in targets_of:
            targets[name] = f"{targets_of[layer]}.{leaf}"
    if "conv" not in theirs or not targets:
        return None
    stem = f"{theirs['conv'][0]}.weight"  # may take images of other channels, which is said where it does not fit
    if not all(
        target in own and (source == stem or _could_fit(state[source], own[target]))
        for source, target in targets.items()
    ):
        return None
    unknown = tuple(name for name in state if name not in targets)
    tensors = {target: state[source] for source, target in targets.items()}
    return Matched(tensors, {target: source for source, target in targets.items()}, unknown, BY_ORDER)


def _could_fit(source: Tensor, own: Tensor) -> bool:
    """Return whether a tensor has the network's shape or is one kernel for its experts, for any number of classes."""
    shapes = (tuple(own.shape), tuple(own.shape[1:]))
    classifier = source.dim() <= 2 and (source.shape[1:] in [shape[1:] for shape in shapes])
    return tuple(source.shape) in shapes or classifier


def _source_layers(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the kind and name of each layer of a source, in its order, or in natural order if names are sorted."""
    names = [name for name in state if name.endswith(".weight")]
    if names == sorted(names):  # as safetensors files have them
        names.sort(
            key=lambda name: [int(part) if at % 2 else part for at, part in enumerate(re.split("([0-9]+)", name))]
        )
    for name in names:
        dims = state[name].dim()
        yield ("norm" if dims == 1 else "linear" if dims == 2 else "conv"), name.removesuffix(".weight")


def _own_layers(layers: Layers) -> Iterator[tuple[str, str]]:
    """Yield the kind and name of each layer of the network, without routing functions, in order of registration."""
    inside = {id(child) for function in layers.routing.values() for child in function.modules()}
    for name, module in layers.modules.items():
        if id(module) in inside:
            continue
        if isinstance(module, _BatchNorm):
            yield "norm", name
        elif is_linear(module):
            yield "linear", name
        elif is_conv(module):
            yield "conv", name


def _group(layers: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for kind, name in layers:
        kinds.setdefault(kind, []).append(name)
    return kinds
