"""Record which modules ran in a forward pass, in which order, on which shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from condconv.counting.tracing.example import arguments_of
from condconv.counting.tracing.running import is_on_meta, undisturbed


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: Name of the module in the model; the first one if it has several.
        module: The module.
        input_shape: Shape of its first tensor argument, or `None`; tensors inside lists do not count.
        output_shape: Shape of its first tensor output, or `None`.
        keywords: Names of the arguments that are given by keyword.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A forward pass: the only place that decides which modules run, and in which order.

    Attributes:
        calls: The calls in the order in which modules were entered; a module that is called twice is in it twice.
        output: Output of the model.
        example: The arguments of the model, given or guessed.
    """

    calls: tuple[Call, ...]
    output: Any
    example: tuple[Any, ...]

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

    Args:
        model: Does not change, including its buffers. It runs on the meta device if its parameters are there.
        example_input: A tensor, or a tuple of positional arguments; `None` for `default_example`.

    Returns:
        The calls and the output.

    Raises:
        UsageError: None is given, and none can be guessed, or the model fails on the guess. With a given example, the
            model's own error is raised.
    """
    entered: list[Call] = []
    shapes: dict[int, tuple[int, ...] | None] = {}
    running: list[int] = []

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(len(entered))
        entered.append(Call(name, module, _first_tensor((*args, *kwargs.values())), None, tuple(kwargs)))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        shapes[running.pop()] = _shape(output)

    handles = []
    on_meta = is_on_meta(model)
    try:
        for name, module in model.named_modules():
            handles.append(
                module.register_forward_pre_hook(lambda m, a, k, n=name: enter(n, m, a, k), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(leave))
        with arguments_of(model, example_input) as arguments, undisturbed(model):
            # A model may change its input in place.
            output = model(*tree_map_only(Tensor, lambda x: x.to("meta") if on_meta else x.clone(), arguments))
    finally:
        for handle in handles:
            handle.remove()
    calls = (replace(call, output_shape=shapes.get(index)) for index, call in enumerate(entered))
    return Trace(tuple(calls), output, arguments)
