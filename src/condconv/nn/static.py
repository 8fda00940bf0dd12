"""Which static layers can become conditional ones, and which attributes move to the new layer.

A conditional layer takes over the values, the arguments and the plain attributes of a static one. A layer with anything
else stays static, and the reason names what it has, so nothing is dropped silently.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from numbers import Number
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from condconv.errors import few
from condconv.nn.foreign import full_name, has_own_forward
from condconv.nn.hooks import why_not_hooks

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Methods that say nothing about what a layer computes once it exists (`foreign.py` judges the first two).
_HARMLESS = ("forward", "_conv_forward", "reset_parameters", "extra_repr", "_abc_impl")
_CALLED_ALWAYS = ("__call__", "__getattr__", "__getattribute__", "__setattr__", "__delattr__")
_COMPUTED = (
    "its {} is computed from other tensors (a parametrization, weight or spectral norm, pruning): "
    "remove that first, for example with torch.nn.utils.parametrize.remove_parametrizations"
)


def why_not_static(layer: nn.Module, conditional: type[Any]) -> str | None:
    """Return why a static layer cannot become a conditional one, or `None`.

    Args:
        layer: An instance of `conditional.static_type`.
        conditional: The class of the conditional layer.
    """
    if isinstance(layer, LazyModuleMixin):
        return "its parameters do not exist yet: run the model once first"
    computed = [name for name in ("weight", "bias") if name not in layer._parameters]
    if computed:
        return _COMPUTED.format(computed[0])
    if getattr(layer, "_compiled_call_impl", None) is not None:
        return "it is compiled: convert it first, then compile it"
    if has_own_forward(layer, conditional.static_type):
        return f"it is a {full_name(type(layer))} with a forward of its own"
    if (reason := _why_not_values(layer)) is not None:
        return reason
    carried = _carried(layer, conditional.static_type)
    if carried:
        return (
            f"it is a {full_name(type(layer))} that carries {few(carried)}, which the new layer would not have: keep "
            "that in a module around it"
        )
    taken = sorted(_plain_attributes(layer, conditional.static_type).keys() & _names_of(conditional))
    if taken:
        return f"it has an attribute `{taken[0]}`, which is something else in a {conditional.__name__}: rename it"
    return why_not_hooks(layer)


def carry_over_(layer: nn.Module, static: nn.Module, twin: type[nn.Module]) -> None:
    """Give a conditional layer and its parameters the plain attributes of a static one, in place.

    Libraries set such marks: that a layer is initialised, that a parameter is not decayed.
    """
    for name, value in _plain_attributes(static, twin).items():
        setattr(layer, name, value)
    for name, parameter in static.named_parameters(recurse=False):
        experts: Any = layer.experts
        for own in (experts.bias,) if name == "bias" else experts.kernel_parameters():
            for attribute, value in _marks(parameter).items():
                setattr(own, attribute, value)


def _why_not_values(layer: Any) -> str | None:
    """Return why experts cannot start from the numbers of a layer, or `None`."""
    if layer.weight is None:
        return "it has no weight"
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    shapes = {"weight": _weight_shape(layer), "bias": (outputs,)}
    for name, parameter in layer.named_parameters(recurse=False):
        if name not in shapes:
            continue
        if type(parameter) is not nn.Parameter:
            return f"its {name} is a {full_name(type(parameter))}, which computes in its own way"
        if parameter.dtype not in _FLOATS or parameter.layout != torch.strided:
            return (
                f"its {name} is {parameter.dtype}, {parameter.layout}: experts are dense real floats of 16 bits or more"
            )
        if tuple(parameter.shape) != shapes[name]:
            return (
                f"its {name} has shape {tuple(parameter.shape)}, where its arguments say {shapes[name]}: set them "
                "(in_channels, ...) to what it is"
            )
    return None


def _weight_shape(layer: Any) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    outer, inner = (layer.out_channels, layer.in_channels)[:: -1 if layer.transposed else 1]
    return (outer, inner // layer.groups, *layer.kernel_size)


def _carried(layer: nn.Module, twin: type[nn.Module]) -> list[str]:
    """Describe what a layer has that a conditional layer cannot take over."""
    found = [f"parameter {name!r}" for name in layer._parameters if name not in ("weight", "bias")]
    found += [f"buffer {name!r}" for name in layer._buffers]
    found += [f"module {name!r}" for name in layer._modules]
    found += [
        f"{'method' if callable(value) or isinstance(value, property) else 'attribute'} {name!r}"
        for name, value in _attributes(layer, twin)
        if not _is_plain(value)
    ]
    for name, parameter in layer.named_parameters(recurse=False):
        found += [
            f"{attribute!r} on its {name}" for attribute, value in _marks(parameter).items() if not _is_plain(value)
        ]
    return found


def _attributes(layer: nn.Module, twin: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that a layer and its classes have in addition to torch's class."""
    for kind in reversed(type(layer).__mro__):
        if not issubclass(twin, kind):
            for name, value in vars(kind).items():
                dunder = name.startswith("__") and name.endswith("__")
                if name in _CALLED_ALWAYS or not (dunder or name in _HARMLESS):
                    yield name, value
    known = _attributes_of(twin)
    yield from ((name, value) for name, value in vars(layer).items() if name not in known)


def _plain_attributes(layer: nn.Module, twin: type[nn.Module]) -> dict[str, Any]:
    """Return those of `_attributes` that can be copied, without settings that torch's classes have too."""
    found = {name: value for name, value in _attributes(layer, twin) if _is_plain(value)}
    return {name: value for name, value in found.items() if not hasattr(twin, name)}


def _marks(parameter: nn.Parameter) -> Mapping[str, Any]:
    """Return the attributes that were set on a parameter, without the compiler's, which hold for that tensor only."""
    return {name: value for name, value in vars(parameter).items() if not name.startswith("_dynamo")}


def _attributes_of(twin: type[nn.Module]) -> frozenset[str]:
    sizes = (1, 1) if twin is nn.Linear else (1, 1, 1)
    return frozenset(vars(twin(*sizes, device="meta")))


def _names_of(conditional: type[nn.Module]) -> frozenset[str]:
    """Return the names of attributes and methods that a conditional layer uses itself."""
    declared = (name for kind in conditional.__mro__ for name in inspect.get_annotations(kind))
    return frozenset((*dir(conditional), *declared))


def _is_plain(value: Any) -> bool:
    """Whether a value is data that means the same on another layer: numbers, text, names, and collections of them."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (Number, str, bytes, Enum, torch.dtype, torch.device))
