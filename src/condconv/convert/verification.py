"""Checking that a changed model computes what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from condconv.tracing import evaluating


def check_same_output(model: nn.Module, example: Any, expected: Any) -> bool:
    """Run a model in evaluation mode and compare with what it gave before.

    Args:
        model: The changed model; left as it is.
        example: A tensor or a tuple of arguments.
        expected: The output before: a tensor, or tensors in tuples, lists, dicts and dataclasses.

    Returns:
        Whether there was anything to compare.

    Raises:
        RuntimeError: It fails to run, or an output differs by more than the square root of the dtype's epsilon
            relative to the largest value: far more than rounding does, far less than a wrong kernel.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    try:
        with evaluating(model), torch.no_grad():
            output = model(*arguments)
    except Exception as error:
        raise RuntimeError(
            f"the changed model failed on the example ({error}); it has been restored. Something uses the kernel "
            "of a replaced layer directly (leave that layer out), or a block cannot be routed by its first input "
            "(take scope='layer', or say which modules are blocks)"
        ) from error
    pairs = [*zip_longest(output_tensors(expected), output_tensors(output))]
    shapes = [[None if tensor is None else tuple(tensor.shape) for tensor in pair] for pair in pairs]
    if any(before != after for before, after in shapes):
        raise RuntimeError(f"the changed model must compute what it did, its output shapes differ: {shapes}; restored")
    for before, after in pairs:
        scale = before[before.isfinite()].abs().max().item() if before.isfinite().any() else 0.0
        deviation = (after - before).abs()[before.isfinite()].max().item() if before.isfinite().any() else 0.0
        if not torch.equal(before.isfinite(), after.isfinite()) or deviation > torch.finfo(
            before.dtype
        ).eps ** 0.5 * max(scale, 1e-6):
            raise RuntimeError(
                f"the changed model must compute what it did, its output differs by {deviation:.3g} of {scale:.3g}; "
                "it has been restored. Something uses the kernel or the output of a replaced layer "
                "directly, or the model is random in evaluation mode: leave such layers out"
            )
    return bool(pairs)


def output_tensors(values: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in what a model gave: in tuples, lists, dicts and dataclasses."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from output_tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from output_tensors(value)
    elif is_dataclass(values) and not isinstance(values, type):
        yield from output_tensors([getattr(values, each.name) for each in fields(values)])
