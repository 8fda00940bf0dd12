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
BlockTest = Callable[[str, nn.Module], bool]


def find_block(model: nn.Module, name: str, is_block: BlockTest | None = None) -> str | None:
    """Return the name of the block a layer belongs to, or `None`.

    The block is the innermost module around the layer that stands in a container (a stage: Sequential, ModuleList,
    ModuleDict), is no container itself, and holds two convolutions or more; where there is none, the outermost
    module below the root that is no container and holds two or more.

    Args:
        model: The model.
        name: Of the layer.
        is_block: Decides by name and module instead; the innermost that it accepts is the block.
    """
    path = name.split(".")
    around = [".".join(path[:length]) for length in range(len(path) - 1, 0, -1)]  # innermost first
    modules = {ancestor: model.get_submodule(ancestor) for ancestor in around}
    if is_block is not None:
        return next((ancestor for ancestor in around if is_block(ancestor, modules[ancestor])), None)
    modules[""] = model
    candidates = [
        ancestor
        for ancestor in around
        if not isinstance(modules[ancestor], _CONTAINERS) and _num_convs(modules[ancestor]) >= 2
    ]
    in_containers = (
        ancestor for ancestor in candidates if isinstance(modules[ancestor.rpartition(".")[0]], _CONTAINERS)
    )
    return next(in_containers, candidates[-1] if candidates else None)


def _num_convs(module: nn.Module) -> int:
    return sum(isinstance(child, (_ConvNd, ConditionalLayer)) for child in module.modules())


def find_candidates(model: nn.Module, watched: Trace | None, is_block: BlockTest | None = None) -> list[Candidate]:
    """Return the convolutions and linear layers of a model in the order in which they run.

    Layers inside routing functions are left out. Without a trace the order is that of registration.
    """
    layers = list(_static_layers(model))
    entered = {} if watched is None else {id(call.module): i for i, call in reversed([*enumerate(watched.calls)])}
    layers.sort(key=lambda item: entered.get(id(item[1]), len(entered)))  # stable: layers that did not run come last
    blocks = [
        None if isinstance(module, nn.Linear) and is_block is None else find_block(model, name, is_block)
        for name, module in layers
    ]
    order = list(dict.fromkeys(block for block in blocks if block is not None))
    candidates = []
    for index, ((name, module), block) in enumerate(zip(layers, blocks, strict=True)):
        call = None if watched is None else watched.first_call(module)
        pixels = None
        if call is not None and call.output_shape is not None:
            shape = call.output_shape
            pixels = prod(shape[1:-1] if isinstance(module, nn.Linear) else shape[2:])
        after = None if block is None else len(order) - 1 - order.index(block)
        candidates.append(Candidate(name, module, index / max(len(layers) - 1, 1), pixels, block, after))
    return candidates


def _static_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside_routing = {
        id(child) for module in model.modules() if isinstance(module, RoutingFunction) for child in module.modules()
    }
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and id(module) not in inside_routing:
            yield name, module
