"""One forward pass, watched: which modules ran, in which order, on which shapes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from condconv.errors import first_line

_FIRST_SIZES = {nn.Conv1d: (1024,), nn.Conv2d: (224, 224), nn.Conv3d: (16, 112, 112)}


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: Of the module in the model; the first one where it has several.
        module: The module.
        input_shape: Of its first argument that is a tensor, or `None`; lists of tensors are not looked into.
        output_shape: Of its first tensor output, or `None`.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Trace:
    """What a forward pass did: the one place that says which modules run, and in which order.

    Attributes:
        calls: In the order in which modules were entered; a module that is called twice is in it twice.
        output: Of the model.
    """

    calls: tuple[Call, ...]
    output: Any

    @cached_property
    def _first(self) -> dict[nn.Module, int]:
        return {call.module: index for index, call in reversed([*enumerate(self.calls)])}

    def runs(self, module: nn.Module) -> bool:
        """Return whether a module was called."""
        return module in self._first

    def place(self, module: nn.Module) -> int:
        """Return how many calls came before the first one of a module, or the number of calls if it did not run."""
        return self._first.get(module, len(self.calls))

    def first_call(self, module: nn.Module) -> Call | None:
        """Return the first call of a module, or `None` if it did not run."""
        return self.calls[self._first[module]] if self.runs(module) else None


def default_example(model: nn.Module) -> Tensor:
    """Return noise of the shape an image model takes, batch 1, on its device and in its dtype, always the same.

    The size is that in the model's `pretrained_cfg` (timm), or 224 x 224 for a model whose first convolution is
    two-dimensional, 1024 samples for one-dimensional, 16 x 112 x 112 for three-dimensional ones.

    Raises:
        ValueError: The model has no convolution to tell the shape from.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    compact = {id(getattr(module, "weight", None)) for module in model.modules() if getattr(module, "compact", False)}
    dtype = next((each.dtype for each in model.parameters() if id(each) not in compact), None)
    first: Any = next((m for m in model.modules() if _size_for(m) is not None), None)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("example_input must be given: its lazy layers do not know their channels yet")
    if isinstance(config, dict) and config.get("input_size"):
        size = tuple(config["input_size"])
        channels = size[0] if first is None else first.in_channels
        return _noise((1, channels, *size[1:]), device, dtype)
    if first is None:
        raise ValueError(
            f"example_input must be given: {type(model).__name__} has no convolution to tell the input shape from"
        )
    return _noise((1, first.in_channels, *(_size_for(first) or ())), device, dtype)


@contextmanager
def arguments_of(model: nn.Module, example_input: Any) -> Iterator[tuple[Any, ...]]:
    """Give the arguments of a run of the model, which happens in the block.

    Args:
        model: Any module.
        example_input: A tensor, or a tuple of positional arguments; `None` for `default_example`.

    Raises:
        ValueError: None is given, and none can be guessed, or the block fails on the guess. What it raises on an
            example that is given is raised as it is.
    """
    given = default_example(model) if example_input is None else example_input
    try:
        yield given if isinstance(given, tuple) else (given,)
    except Exception as error:
        if example_input is not None:
            raise
        raise ValueError(
            f"example_input must be given: {type(model).__name__} fails on a guess of shape {_shape(given)} "
            f"({first_line(error)})"
        ) from error


def _size_for(module: nn.Module) -> tuple[int, ...] | None:
    """Return the input size to try for a model that begins with this convolution, static or with experts."""
    kind = getattr(module, "twin", type(module))
    return next((size for conv, size in _FIRST_SIZES.items() if issubclass(kind, conv)), None)


def _noise(shape: tuple[int, ...], device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(device=device, dtype=dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and restore each module's own mode after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model to look at it: in evaluation mode, without gradients, and as if it had not run.

    Buffers that the run changes (a count of runs) are as before afterwards, and so are the random generators, which
    start alike for each run: two runs of a model that draws numbers draw the same. What was compiled runs as written,
    since compiled code does not call the hooks of the modules inside.
    """
    devices = {each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"}
    indices = [torch.cuda.current_device() if device.index is None else device.index for device in devices]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(indices))
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in indices)):
            generator.manual_seed(0)
        if "torch._dynamo" in sys.modules:  # takes a second to import, and without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_keeping_buffers(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def _keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers that have other values afterwards; a cache that had another shape or none before is kept."""
    kept = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer) and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for module, name, buffer, version, values in kept:
            if buffer._version != version:
                buffer.copy_(values)
            now = module._buffers.get(name)
            if now is not None and now is not buffer and (now.shape, now.dtype) == (buffer.shape, buffer.dtype):
                module._buffers[name] = buffer


def _first_tensor(arguments: Iterable[Any]) -> tuple[int, ...] | None:
    return next((tuple(value.shape) for value in arguments if isinstance(value, Tensor)), None)


def _shape(values: Any) -> tuple[int, ...] | None:
    if isinstance(values, Tensor):
        return tuple(values.shape)
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return None
    return next((found for found in map(_shape, values) if found is not None), None)


def trace(model: nn.Module, example_input: Any = None) -> Trace:
    """Run a model once, without gradients, in evaluation mode, and record every module's calls.

    The model, its buffers and the random generators are left as they were.

    Args:
        model: Left as it was.
        example_input: A tensor, or a tuple of positional arguments; `None` for `default_example`.

    Returns:
        The calls and the output.

    Raises:
        ValueError: None is given, and none can be guessed, or the model fails on the guess. What it raises on an
            example that is given is raised as it is.
    """
    entered: list[tuple[str, nn.Module, tuple[int, ...] | None]] = []
    finished: dict[int, tuple[int, ...] | None] = {}
    running: list[int] = []

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(len(entered))
        entered.append((name, module, _first_tensor((*args, *kwargs.values()))))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        finished[running.pop()] = _shape(output)

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(
                module.register_forward_pre_hook(lambda m, a, k, n=name: enter(n, m, a, k), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(leave))
        with arguments_of(model, example_input) as arguments, undisturbed(model):
            output = model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    calls = [Call(name, module, shape, finished.get(i)) for i, (name, module, shape) in enumerate(entered)]
    return Trace(tuple(calls), output)
