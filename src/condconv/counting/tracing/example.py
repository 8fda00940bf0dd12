"""The input that a model is run on: the given example, or a guess."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from condconv.errors import UsageError, first_line
from condconv.nn import ConditionalLayer
from condconv.nn.classes import static_class

_FIRST_SIZES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Conv1d: (1024,),
    nn.Conv2d: (224, 224),
    nn.Conv3d: (16, 112, 112),
}


def default_example(model: nn.Module) -> Tensor:
    """Return noise in the shape that an image model takes, batch 1, in its device and dtype; always the same values.

    The size is that in the model's `pretrained_cfg` (timm), or 224 x 224 for a model whose first convolution is
    two-dimensional, 1024 samples for one-dimensional, 16 x 112 x 112 for three-dimensional ones.

    Raises:
        UsageError: The model has no convolution that would show the shape.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    layers = (module for module in model.modules() if isinstance(module, ConditionalLayer))
    quantized = {id(each) for layer in layers if layer.experts.quantized for each in layer.experts.kernel_parameters()}
    dtype = next((each.dtype for each in model.parameters() if id(each) not in quantized), None)
    first: Any = next((m for m in model.modules() if _size_for(m) is not None), None)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise UsageError(
            f"`example_input` must be given, got None: lazy layers of {type(model).__name__} do not know their "
            "channels yet, so give a tensor the model takes"
        )
    if isinstance(config, dict) and config.get("input_size"):
        size = tuple(config["input_size"])
        channels = size[0] if first is None else first.in_channels
        return _noise((1, channels, *size[1:]), device, dtype)
    if first is None:
        raise UsageError(
            f"`example_input` must be given, got None: {type(model).__name__} has no convolution to tell the "
            "input shape from, so give a tensor the model takes"
        )
    return _noise((1, first.in_channels, *(_size_for(first) or ())), device, dtype)


@contextmanager
def arguments_of(model: nn.Module, example_input: Any) -> Iterator[tuple[Any, ...]]:
    """Give the arguments of a run of the model, which happens in the block.

    Args:
        model: Any module.
        example_input: A tensor, or a tuple of positional arguments; `None` for `default_example`.

    Raises:
        UsageError: None is given, and none can be guessed, or the block fails on the guess. With a given example, the
            block's own error is raised.
    """
    given = default_example(model) if example_input is None else example_input
    try:
        yield given if isinstance(given, tuple) else (given,)
    except Exception as error:
        if example_input is not None:
            raise
        shape = tuple(given.shape)
        raise UsageError(
            f"`example_input` must be given, got None: {type(model).__name__} fails on a guess of shape {shape} "
            f"({first_line(error)}), so give a tensor the model takes"
        ) from error


def _size_for(module: nn.Module) -> tuple[int, ...] | None:
    """Return the input size to try for a model that begins with this convolution, static or with experts."""
    kind = static_class(module)
    return None if kind is None else _FIRST_SIZES.get(kind)


def _noise(shape: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(device=device, dtype=dtype)
