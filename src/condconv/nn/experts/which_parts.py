"""Which parts a layer with shared experts has, of what a user asks for."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from condconv.errors import UsageError, shown
from condconv.nn.experts.base import KernelSpec

_RANK = 8
_FULL_UP_TO = 32  # channels, for kernels of several taps, which have more numbers than a matrix of channels


class Parts(NamedTuple):
    """The parts of `SharedExperts`, in its words; `None` or `False` for none."""

    rank: int | str | None
    gains: bool
    outputs: int | None
    kernels: int | None


def channels_of(spec: KernelSpec) -> tuple[int, int]:
    """Return C and O."""
    inputs = spec.shape[0] if spec.transposed else spec.shape[1] * spec.groups
    return inputs, spec.out_channels


def check_parts(rank: Any = "auto", gains: Any = False, outputs: Any = None, kernels: Any = None) -> None:
    """Check what is the same for all layers.

    Raises:
        UsageError: No layer can have these parts.
    """
    if not (rank in ("auto", "full", None) or _is_count(rank)):
        raise UsageError(f"`rank` must be a whole number, 'full', 'auto' or None, got {shown(rank)}: 'auto' is usual")
    if not isinstance(gains, bool):
        raise UsageError(f"`gains` must be True or False, got {shown(gains)}: leave it out for False")
    for name, value in (("outputs", outputs), ("kernels", kernels)):
        if not (value is None or _is_count(value)):
            raise UsageError(
                f"`{name}` must be a whole number from 1 on or None, got {shown(value)}: leave it out for None"
            )


def resolve_parts(spec: KernelSpec, rank: Any, gains: Any, outputs: Any, kernels: Any) -> Parts:
    """Return the parts that a layer has.

    Raises:
        UsageError: It cannot have those that are asked for, or would have none.
    """
    check_parts(rank, gains, outputs, kernels)
    _check_outputs(spec, outputs)
    added = outputs is not None or kernels is not None
    if spec.groups > 1:  # whose channels do not meet
        return Parts(None, gains or not added, None, kernels)
    channels = channels_of(spec)[0]
    if rank == "auto":
        few = channels <= (_FULL_UP_TO if prod(spec.shape[2:]) > 1 else _RANK)
        rank = None if added else "full" if few else _RANK
    elif rank is None and not (gains or added):
        raise UsageError("`rank` must not be None without gains, got None: experts would all be alike")
    elif isinstance(rank, int) and rank > channels:
        raise UsageError(
            f"`rank` must be at most the number of input channels, {channels}, got {rank}: give less, or 'full'"
        )
    return Parts(rank, gains, outputs, kernels)


def _check_outputs(spec: KernelSpec, outputs: int | None) -> None:
    if outputs is None:
        return
    if spec.groups > 1:
        raise UsageError(
            f"`outputs` must be None for a layer with groups, got {outputs}: its output channels meet no common ones, "
            "give kernels=2 or leave it out"
        )
    most = min(spec.out_channels, prod(spec.shape) // spec.out_channels)
    if outputs > most:
        raise UsageError(f"`outputs` must be at most the rank of a kernel, {most}, got {outputs}: give less")


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
