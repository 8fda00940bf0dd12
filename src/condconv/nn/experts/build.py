"""From what a user writes as `experts=` to a store of experts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from condconv.errors import UsageError, shown
from condconv.nn.calls import resolve_call
from condconv.nn.experts.base import Experts, KernelSpec
from condconv.nn.experts.decomposed import DecomposedExperts
from condconv.nn.experts.deltas import DeltaExperts
from condconv.nn.experts.dense import DenseExperts
from condconv.nn.experts.modulated import ModulatedExperts
from condconv.nn.experts.shared import SharedExperts

EXPERTS: dict[str, type[Experts]] = {
    "dense": DenseExperts,
    "deltas": DeltaExperts,
    "shared": SharedExperts,
    "modulated": ModulatedExperts,
    "decomposed": DecomposedExperts,
}
_OF_THE_LAYER = ("spec", "num_experts", "device", "dtype")
ExpertsOption = str | Callable[..., Experts]


def resolve_experts(experts: ExpertsOption) -> tuple[Callable[..., Experts], dict[str, Any]]:
    """Return what makes the experts that a user asks for, and its options.

    Raises:
        UsageError: `experts` is neither a known name nor callable, or its text has an option that it does not know.
    """
    if not isinstance(experts, str):
        if callable(experts):
            return experts, {}
        raise UsageError(
            f"`experts` must be a name or a factory, got {type(experts).__name__} {shown(experts, 40)}: names are "
            f"{', '.join(EXPERTS)}"
        )
    return resolve_call(experts, "experts", EXPERTS, _options_of, "or give a factory")


def _options_of(make: type[Experts]) -> list[str]:
    return [each for each in inspect.signature(make).parameters if each not in _OF_THE_LAYER]


def why_not_experts(experts: ExpertsOption, static: nn.Module) -> str | None:
    """Return why a static layer cannot get the experts that a user asks for, or `None`.

    Raises:
        UsageError: As `resolve_experts`.
    """
    make, options = resolve_experts(experts)
    reason: str | None = make.why_not(KernelSpec.of(static), **options) if hasattr(make, "why_not") else None
    return reason


def written_experts(experts: Experts) -> str:
    """Return the text, as `experts=` takes it, that makes experts like given ones.

    Raises:
        UsageError: Their class has no name in `EXPERTS`.
    """
    for name, kind in EXPERTS.items():
        if type(experts) is kind:
            return f"{name}({experts.options()})"
    raise UsageError(
        f"`experts` must be of this package to be written as text, got {type(experts).__name__}: names are "
        f"{', '.join(EXPERTS)}"
    )


def make_experts(
    experts: ExpertsOption,
    spec: KernelSpec,
    num_experts: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Experts:
    """Return the experts of a layer, whose numbers have not been drawn yet.

    Args:
        experts: A name (a key of `EXPERTS`), with options if need be; or a factory called as
            `factory(spec, num_experts, device, dtype)`, such as a subclass of `Experts`.
        spec: The kernel of one example.
        num_experts: E.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        UsageError: An unknown name, an option that it does not have, a value that the layer cannot have, or a factory
            of something else.
    """
    make, options = resolve_experts(experts)
    made: Any = make(spec, num_experts, device, dtype, **options)
    if not isinstance(made, Experts):
        raise UsageError(
            f"`experts` must make a condconv.nn.Experts, got {type(made).__name__} from {shown(experts)}: return one"
        )
    return made
