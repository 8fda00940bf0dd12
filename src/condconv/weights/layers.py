"""Look up a network's names, modules, tensors and routing once, for all stages of a load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from condconv.nn import ConditionalLayer
from condconv.nn.block_routing import routing_functions
from condconv.nn.conditional import conditional_layers


class Layers:
    """What a load needs to know of a network. None of it changes while weights are loaded.

    Args:
        model: The network.

    Attributes:
        model: The network.
        modules: Its modules by their first names, itself included under the empty name.
        names: First names by module.
        first: The names of its tensors, each with the first name of the same tensor, since modules may share it. Other
            entries of the state dict are left out.
        tensors: Its tensors by first name; experts have a static layer's, `conv.weight` for `conv.experts.weight`.
        conditional: Its layers with experts by name.
        most_entries: Maximum number of entries of a tensor for this network or a similar one.
        routing: For each object that a layer holds as its `routing_fn`, the function that computes the weights.

    Raises:
        UsageError: It is a part of a network, without the block that routes its layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.conditional = conditional_layers(model)
        self._layers = {
            name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, ConditionalLayer)
        }
        self._own: dict[str, str] = {}
        kept = self._named(model.state_dict(keep_vars=True))  # the objects themselves, not views of them
        ids: dict[int, str] = {}
        self.first = {name: ids.setdefault(id(each), name) for name, each in kept.items() if isinstance(each, Tensor)}
        state = self._named(model.state_dict())
        self.tensors: dict[str, Tensor] = {name: state[name] for name in dict.fromkeys(self.first.values())}
        self.routing = routing_functions(model)
        # No kernel of a relative is as large as many whole networks.
        self.most_entries = 16 * sum(each.numel() for each in self.tensors.values()) + 2**24
        self._parts = {part for name in self.first for part in name.split(".")}
        self._ends = {end for name in self.first for end in ends(name)}

    def _named(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state dict with the names that static networks and most ports have: without `experts`."""
        named = {}
        for own, value in state.items():
            owner, _, leaf = own.rpartition(".")
            layer = owner.removesuffix("experts").removesuffix(".")
            is_kernel = leaf in ("weight", "bias") and owner.rpartition(".")[2] == "experts" and layer in self._layers
            name = f"{layer}.{leaf}".removeprefix(".") if is_kernel else own
            named[name], self._own[name] = value, own
        return named

    def parts(self, layer: str) -> list[str]:
        """Return the names of what the experts of a layer have besides kernel and bias."""
        return [name for name in self.tensors if name.startswith(f"{layer}.experts.")]

    def own_names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return what the network's state dict calls its tensors, of their names here."""
        return tuple(self._own[name] for name in names)

    def function(self, layer: str) -> nn.Module:
        """Return the function that computes the routing weights of a conditional layer."""
        return self.routing[self.conditional[layer].routing_fn]

    def has(self, end: str) -> bool:
        """Return whether a tensor of the network has this name, or a name that ends in it."""
        return end in self._ends

    def has_part(self, part: str) -> bool:
        """Return whether the name of a tensor of the network has this part between dots."""
        return part in self._parts

    def knows(self, name: str) -> bool:
        """Return whether the network has a tensor of a name, ignoring prefixes of both, such as `module.`."""
        return name in self._ends or any(end in self.first for end in ends(name))

    def routes(self, name: str) -> bool:
        """Return whether a name is inside a conditional layer or a routing function of the network."""
        inner = (self.modules.get(name[:at]) for at, letter in enumerate(name) if letter == ".")
        functions = {*self.routing.values()}
        return any(isinstance(each, ConditionalLayer) or each in functions for each in inner if each is not None)


def ends(name: str) -> list[str]:
    """Return a name, and the name without its first part, its first two parts, and so on."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def common_parts(names: Iterable[str]) -> list[str]:
    """Return the parts, between dots, that all names begin with."""
    together = zip(*(name.split(".")[:-1] for name in names), strict=False)  # as far as the shortest goes
    return [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, together)]
