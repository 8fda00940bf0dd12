"""Find the candidates of a model and their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Set
from math import prod

from torch import nn

from condconv.convert.select import Candidate
from condconv.counting.tracing import Trace
from condconv.errors import UsageError
from condconv.nn import RoutingFunction
from condconv.nn.choice import LayerChoice, choose_named
from condconv.nn.classes import STATIC_CLASSES, is_conv, static_class

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Blocks:
    """The blocks of a model: the modules whose input routes the layers inside them.

    The block of a layer is the innermost module around it that is in a stage and has two layers or more, not counting
    those with a single output pixel (squeeze-and-excitation); if there is none, the outermost module below the root
    that has two or more. A stage is a container (Sequential, ModuleList, ModuleDict) or a module of blocks of one
    class; a container is not a block itself.

    Args:
        model: The model.
        watched: A forward pass of it; `None` if there is none.
        choice: Which modules are blocks, instead; the innermost of these around a layer is its block.
    """

    def __init__(self, model: nn.Module, watched: Trace | None, choice: LayerChoice | None = None) -> None:
        self.model = model
        self.watched = watched
        self._chosen = None if choice is None else self._choose(choice)
        calls = () if watched is None else watched.calls
        self._single_pixel = {
            id(call.module)
            for call in calls
            if is_conv(call.module) and call.output_shape and prod(call.output_shape[2:]) == 1
        }

    def of(self, name: str) -> str | None:
        """Return the name of the block of a layer, or `None` if it is outside any block."""
        path = name.split(".")
        around = [".".join(path[:length]) for length in range(len(path) - 1, 0, -1)]  # innermost first
        modules = {"": self.model} | {ancestor: self.model.get_submodule(ancestor) for ancestor in around}
        if self._chosen is not None:
            return next((ancestor for ancestor in around if ancestor in self._chosen), None)
        large = [
            ancestor
            for ancestor in around
            if not isinstance(modules[ancestor], _CONTAINERS) and self._num_layers(modules[ancestor]) >= 2
        ]
        in_stages = (ancestor for ancestor in large if self._is_stage(modules[ancestor.rpartition(".")[0]]))
        return next(in_stages, large[-1] if large else None)

    def why_not_route(self, block: str, layers: list[nn.Module]) -> str | None:
        """Return why a block cannot route layers inside it by its first input, or `None`."""
        module = self.model.get_submodule(block)
        if isinstance(module, _CONTAINERS):
            return f"it is a {type(module).__name__}, which would run a routing function as a layer"
        call = None if self.watched is None else self.watched.first_call(module)
        if self.watched is None or call is None:
            return "it does not run on the example"
        if call.input_shape is None or len(call.input_shape) < 2:
            return f"its first input must be a tensor [B, C, ...], got {call.input_shape or 'something else'}"
        shape = call.input_shape
        calls = (self.watched.first_call(layer) for layer in layers)
        inner = [seen.input_shape for seen in calls if seen is not None and seen.input_shape is not None]
        for got in inner:
            if got[0] != shape[0]:
                return f"the batch changes inside it, from {shape[0]} to {got[0]}"
        # A layer of another rank, as in efficient channel attention, says nothing as long as others have the block's.
        same_rank = [got for got in inner if len(got) == len(shape)]
        turned = [got for got in same_rank if got[1] != shape[1] and sorted(got) == sorted(shape)]
        if inner and (turned or not same_rank):
            return f"its input {list(shape)} is not laid out as those of its layers, {list((turned or inner)[0])}"
        return None

    def channels_of(self, block: str) -> int:
        """Return C of the input of a block that can route."""
        call = None if self.watched is None else self.watched.first_call(self.model.get_submodule(block))
        if call is None or call.input_shape is None:
            raise UsageError(
                f"`example_input` must be given and run {block!r}, whose input routes its layers, got none: give a "
                "tensor or a tuple of the model's arguments"
            )
        return call.input_shape[1]

    def _choose(self, choice: LayerChoice) -> Set[str]:
        modules = {name: module for name, module in self.model.named_modules(remove_duplicate=False) if name}
        return choose_named(modules, choice, argument="blocks", kind="modules of the model").keys()

    def _num_layers(self, module: nn.Module) -> int:
        return sum(static_class(m) is not None and id(m) not in self._single_pixel for m in module.modules())

    def _is_stage(self, module: nn.Module) -> bool:
        if isinstance(module, _CONTAINERS):
            return True
        with_layers = [child for child in module.children() if self._num_layers(child)]
        return bool(with_layers) and all(
            type(child) is type(with_layers[0]) and not isinstance(child, _CONTAINERS) and self._num_layers(child) >= 2
            for child in with_layers
        )


def find_candidates(blocks: Blocks) -> list[Candidate]:
    """Return the convolutions and linear layers of a model in the order in which they run.

    Layers that do not run on the example come last, without a position. Layers inside routing functions are not
    candidates. Without a trace the order is that of registration.
    """
    watched = blocks.watched
    layers = list(_static_layers(blocks.model))
    if watched is not None:
        layers.sort(key=lambda layer: watched.place(layer[1]))  # stable: those that do not run keep their order
    names = {name: blocks.of(name) for name, _ in layers}
    running = [(name, module) for name, module in layers if watched is None or watched.runs(module)]
    blocks_in_order = dict.fromkeys(names[name] for name, module in running if not isinstance(module, nn.Linear))
    order = [block for block in blocks_in_order if block is not None]
    positions = {name: index / max(len(running) - 1, 1) for index, (name, _) in enumerate(running)}
    candidates = []
    for name, module in layers:
        block = names[name]
        after = len(order) - 1 - order.index(block) if name in positions and block in order else None
        candidates.append(Candidate(name, module, positions.get(name), _pixels(module, watched), block, after))
    return candidates


def _pixels(layer: nn.Module, watched: Trace | None) -> int | None:
    call = None if watched is None else watched.first_call(layer)
    if call is None or call.output_shape is None:
        return None
    return prod(call.output_shape[1:-1] if isinstance(layer, nn.Linear) else call.output_shape[2:])


def _static_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside_routing = {
        id(child) for module in model.modules() if isinstance(module, RoutingFunction) for child in module.modules()
    }
    for name, module in model.named_modules():
        if isinstance(module, STATIC_CLASSES) and id(module) not in inside_routing:
            yield name, module
