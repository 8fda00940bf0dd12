"""Check that a changed model computes the same as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from condconv.counting.tracing import Trace, trace, undisturbed
from condconv.errors import UsageError, first_line

_NUDGES = 3
_ROUNDINGS = 4


def check_same_output(model: nn.Module, example: Any, expected: Any, tolerance: float | None = None) -> Trace | None:
    """Run a changed model in evaluation mode and compare its output with that before. The caller undoes the change.

    Args:
        model: The changed model; does not change here.
        example: A tensor or a tuple of arguments.
        expected: The output before: a tensor, or tensors in tuples, lists, dicts and dataclasses.
        tolerance: Largest deviation, relative to the largest value of an output; `None` for the square root of the
            dtype's epsilon: far more than rounding, far less than the effect of a wrong kernel.

    Returns:
        The run, or `None` if there was nothing to compare.

    Raises:
        UsageError: It fails to run, or an output differs. If the model itself amplifies rounding, so that no change of
            it could be compared, the message says so.
    """
    run = run_changed(model, example)
    return run if check_output(model, example, expected, run.output, tolerance) else None


def run_changed(model: nn.Module, example: Any) -> Trace:
    """Run a changed model and trace it.

    Args:
        model: Does not change.
        example: A tensor or a tuple of arguments.

    Raises:
        UsageError: It fails.
    """
    try:
        return trace(model, example)
    except Exception as error:
        raise UsageError(
            f"`model` must run as before with other layers, got an error on the example ({first_line(error)}), and it "
            "has been restored: leave out a layer whose kernel something uses directly, and where a block cannot be "
            "routed by its first input, take scope='layer' or say which modules are blocks"
        ) from error


def check_output(model: nn.Module, example: Any, expected: Any, output: Any, tolerance: float | None = None) -> bool:
    """Compare the output of a changed model with that before.

    Args:
        model: The changed model, which is run again if the outputs differ, to see whether it amplifies rounding.
        example: A tensor or a tuple of arguments.
        expected: The output before.
        output: The output now.
        tolerance: As in `check_same_output`.

    Returns:
        Whether there was anything to compare.

    Raises:
        UsageError: They differ.
    """
    difference = _difference(expected, output, tolerance)
    if difference is None:
        return any(True for _ in output_tensors(expected))
    by_itself = _moves_by_itself(model, example, output, tolerance)
    if by_itself is not None:
        raise UsageError(
            f"`model` must compute with other layers what it did before, got {difference}, and it has been restored. "
            f"If its example changes by {_ROUNDINGS} roundings, it gives {by_itself} as well, since sorting or "
            "suppressing results (top-k, NMS, boxes and masks at whole pixels) enlarges rounding errors: change the "
            "part before that alone, with its own example, such as convert_(model.backbone, example_input=images)"
        )
    raise UsageError(
        f"`model` must compute with other layers what it did before, got {difference}, and it has been restored: leave "
        "out layers whose kernel or output something uses directly, and those of a part that is random in evaluation "
        "mode"
    )


def _difference(expected: Any, output: Any, tolerance: float | None) -> str | None:
    """Return in words how two outputs differ, or `None`."""
    pairs = [*zip_longest(output_tensors(expected), output_tensors(output))]
    for pair in pairs:
        old, new = (None if tensor is None else tuple(tensor.shape) for tensor in pair)
        if old != new:
            return f"an output of shape {new} instead of {old}"
    for before, after in pairs:
        finite = before.isfinite()
        scale = before[finite].abs().max().item() if finite.any() else 0.0
        deviation = (after - before)[finite].abs().max().item() if finite.any() else 0.0
        relative = torch.finfo(before.dtype).eps ** 0.5 if tolerance is None else tolerance
        if not torch.equal(finite, after.isfinite()) or deviation > relative * max(scale, 1e-6):
            return f"an output that differs by {deviation:.3g} of {scale:.3g}"
    return None


def _moves_by_itself(model: nn.Module, example: Any, output: Any, tolerance: float | None) -> str | None:
    """Return in words how a model's output differs if its example changes by a few roundings, or `None`."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_NUDGES):
        arguments = _nudged(example if isinstance(example, tuple) else (example,), generator)
        with undisturbed(model):
            difference = _difference(output, model(*arguments), tolerance)
        if difference is not None:
            return difference
    return None


def _nudged(values: Any, generator: torch.Generator) -> Any:
    """Return a copy with each float changed by a few roundings of the largest in its tensor, up or down."""
    if isinstance(values, Tensor):
        if not values.is_floating_point() or not values.numel():
            return values
        signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
        scale = values.abs().max()
        return values + signs * torch.where(scale > 0, scale, 1) * (_ROUNDINGS * torch.finfo(values.dtype).eps)
    if isinstance(values, dict):
        return {key: _nudged(value, generator) for key, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)(_nudged(value, generator) for value in values)
    return values


def output_tensors(values: Any) -> Iterator[Tensor]:
    """Yield the floating point and complex tensors in an output, also in tuples, lists, dicts and dataclasses.

    Those on the meta device have no values, and are skipped.
    """
    if isinstance(values, Tensor):
        if (values.is_floating_point() or values.is_complex()) and not values.is_meta:
            yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from output_tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from output_tensors(value)
    elif is_dataclass(values) and not isinstance(values, type):
        yield from output_tensors([getattr(values, each.name) for each in fields(values)])
