"""Why a model or a layer cannot be converted."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from condconv.convert.blocks import Blocks
from condconv.counting.tracing import Trace
from condconv.errors import few, shown
from condconv.nn import Experts
from condconv.nn.classes import STATIC_CLASSES, conditional_class
from condconv.nn.conditional import own_parameters
from condconv.nn.experts import ExpertsOption, why_not_experts
from condconv.nn.static import why_not_static


def why_not_model(model: nn.Module) -> str | None:
    """Return why a model cannot be converted in place, with the remedy, or `None`."""
    if not isinstance(model, nn.Module):
        return f"`model` must be a torch.nn.Module, got {shown(model)}: give the network itself"
    if torch.is_inference_mode_enabled():
        return "`model` must be converted outside torch.inference_mode, got it on: its experts could never be trained"
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return (
            "`model` must not be scripted or traced to a graph, got one that is: convert the original, then script it"
        )
    # Importing dynamo takes a second, and what it compiled has imported it.
    if "torch._dynamo" in sys.modules and isinstance(model, torch._dynamo.OptimizedModule):
        return "`model` must not be compiled, got one that is: convert the module first, then call torch.compile"
    if isinstance(model, STATIC_CLASSES):
        use = f"condconv.{conditional_class(model).__name__}.from_static(model)"
        return f"`model` must contain layers, got a single {type(model).__name__}: use {use}"
    for name, module in model.named_modules():
        where = f" (module {name!r})" if name else ""
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            return (
                f"`model` must not be wrapped, got a {type(module).__name__}{where}: convert model.module, then wrap it"
            )
        if name and isinstance(module, torch.jit.ScriptModule):
            return f"`model` must not contain scripted modules, got one{where}: convert the original, then script it"
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return "`model` must not be sharded, got parameters that are DTensors: convert it first, then shard it"
    return None


def why_not_layer(model: nn.Module, name: str, layer: nn.Module, experts: ExpertsOption) -> str | None:
    """Return why a layer of a model cannot be given experts, or `None`."""
    if not isinstance(layer, STATIC_CLASSES):
        return f"it is a {type(layer).__name__}"
    if (reason := why_not_static(layer, conditional_class(layer))) is not None:
        return reason
    if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
        return "torch.nn.MultiheadAttention uses its weight without calling it"
    return why_not_experts(experts, layer)


def why_not_called(watched: Trace | None, layer: Any) -> str | None:
    """Return why a conditional layer cannot be called as the model calls a static one, or `None`."""
    dims = 2 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 2
    allowed = {"output_size"} if isinstance(layer, _ConvTransposeNd) else set()
    for call in () if watched is None else watched.calls:
        if call.module is not layer:
            continue
        if unknown := set(call.keywords) - allowed:
            return f"it is called with the keyword {few(sorted(unknown))}: give its input alone, without a name"
        if call.input_shape is not None and len(call.input_shape) < dims:
            return f"its input {list(call.input_shape)} has no batch dimension: call it with x.unsqueeze(0)"
    return None


def why_not_shared(model: nn.Module) -> dict[int, str]:
    """Return reasons by `id` of the layer, for layers whose parameters belong to other modules too."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    of_layers = {part for module in model.modules() if isinstance(module, Experts) for part in module.modules()}
    for name, module in model.named_modules():
        for parameter in [] if module in of_layers else own_parameters(module):
            owners.setdefault(id(parameter), []).append((name, module))
    reasons = {}
    for sharing in owners.values():
        for _, module in sharing if len(sharing) > 1 else []:
            others = ", ".join(repr(name) for name, other in sharing if other is not module)
            reasons[id(module)] = f"it shares a parameter with {others}: untie them first"
    return reasons


def why_not_traced(model: nn.Module) -> dict[int, str]:
    """Return reasons by `id` of the layer, for layers inside a part of the model that is traced to a graph."""
    traced = ((name, part) for name, part in model.named_modules() if isinstance(part, torch.fx.GraphModule))
    return {
        id(layer): f"it is inside {name!r}, which is traced to a graph: convert the original module, then trace it"
        for name, part in traced
        for layer in part.modules()
    }


def in_several_blocks(blocks: Blocks) -> dict[int, str]:
    """Return reasons by `id` of the layer, for layers registered in more than one block."""
    standing: dict[int, set[str | None]] = {}
    for name, module in blocks.model.named_modules(remove_duplicate=False):
        if isinstance(module, STATIC_CLASSES):
            standing.setdefault(id(module), set()).add(blocks.of(name))
    return {
        key: "it stands in several blocks, whose routings differ: convert it with scope='layer'"
        for key, found in standing.items()
        if len(found) > 1
    }
