"""Finding the candidates of a model and the blocks they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd

from condconv.convert.select import Candidate
from condconv.nn import ConditionalLayer, RoutingFunction
from condconv.tracing import Trace

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LAYERS = (_ConvNd, nn.Linear, ConditionalLayer)
BlockTest = Callable[[str, nn.Module], bool]


class Blocks:
    """The blocks of a model: the modules whose input routes the layers inside them.

    The block of a layer is the innermost module around it that stands in a stage and holds two layers or more, not
    counting those with a single output pixel (squeeze-and-excitation); where there is none, the outermost module below
    the root that holds two or more. A stage is a container (Sequential, ModuleList, ModuleDict) or a module of blocks
    of one class; a container is no block itself.

    Args:
        model: The model.
        watched: A forward pass of it; `None` if there is none.
        is_block: Decides by name and module instead; the innermost that it accepts is the block.
    """

    def __init__(self, model: nn.Module, watched: Trace | None, is_block: BlockTest | None = None) -> None:
        self.model = model
        self.watched = watched
        self.is_block = is_block
        calls = () if watched is None else watched.calls
        self._single_pixel = {
            id(call.module)
            for call in calls
            if isinstance(call.module, _LAYERS[:1]) and call.output_shape and prod(call.output_shape[2:]) == 1
        }

    def of(self, name: str) -> str | None:
        """Return the name of the block of a layer, or `None` if it stands outside any."""
        path = name.split(".")
        around = [".".join(path[:length]) for length in range(len(path) - 1, 0, -1)]  # innermost first
        modules = {"": self.model} | {ancestor: self.model.get_submodule(ancestor) for ancestor in around}
        if self.is_block is not None:
            return next((ancestor for ancestor in around if self.is_block(ancestor, modules[ancestor])), None)
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

    def _num_layers(self, module: nn.Module) -> int:
        return sum(isinstance(m, _LAYERS) and id(m) not in self._single_pixel for m in module.modules())

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

    Layers inside routing functions are left out. Without a trace the order is that of registration.
    """
    watched = blocks.watched
    layers = list(_static_layers(blocks.model))
    entered = {} if watched is None else {id(call.module): i for i, call in reversed([*enumerate(watched.calls)])}
    layers.sort(key=lambda item: entered.get(id(item[1]), len(entered)))  # stable: layers that did not run come last
    names = [blocks.of(name) for name, _ in layers]
    running = [(name, module) for name, module in layers if watched is None or id(module) in entered]
    order = list(
        dict.fromkeys(
            block
            for block, (_, module) in zip(names, running, strict=False)  # those that run come first
            if block is not None and not isinstance(module, nn.Linear)
        )
    )
    candidates = []
    for index, ((name, module), block) in enumerate(zip(layers, names, strict=True)):
        call = None if watched is None else watched.first_call(module)
        pixels = None
        if call is not None and call.output_shape is not None:
            shape = call.output_shape
            pixels = prod(shape[1:-1] if isinstance(module, nn.Linear) else shape[2:])
        after = len(order) - 1 - order.index(block) if block in order else None
        candidates.append(Candidate(name, module, min(index / max(len(running) - 1, 1), 1.0), pixels, block, after))
    return candidates


def _static_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside_routing = {
        id(child) for module in model.modules() if isinstance(module, RoutingFunction) for child in module.modules()
    }
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and id(module) not in inside_routing:
            yield name, module
