"""From what a user writes as `experts=` to a store of experts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from condconv.errors import UsageError, shown
from condconv.nn.calls import parse_call
from condconv.nn.experts.base import Experts, KernelSpec
from condconv.nn.experts.dense import DenseExperts
from condconv.ops.scalars import one_of

EXPERTS: dict[str, type[Experts]] = {"dense": DenseExperts}
_OF_THE_LAYER = ("spec", "num_experts", "device", "dtype")
ExpertsOption = str | Callable[..., Experts]


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
    make: Any = experts
    options: dict[str, Any] = {}
    if isinstance(experts, str):
        name, options = parse_call(experts, "experts")
        make = EXPERTS[one_of("experts", name, EXPERTS, "or give a factory")]
        known = [each for each in inspect.signature(make).parameters if each not in _OF_THE_LAYER]
        if unknown := [option for option in options if option not in known]:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"`experts` must have options of {name} only, got {shown(unknown[0])}: {has}")
    if not callable(make):
        raise UsageError(
            f"`experts` must be a name or a factory, got {type(make).__name__} {shown(make, 40)}: names are "
            f"{', '.join(EXPERTS)}"
        )
    made: Any = make(spec, num_experts, device, dtype, **options)
    if not isinstance(made, Experts):
        raise UsageError(
            f"`experts` must make a condconv.nn.Experts, got {type(made).__name__} from {shown(experts)}: return one"
        )
    return made
