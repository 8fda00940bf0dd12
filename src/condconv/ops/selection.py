"""Which implementation runs: the one place that knows the limits of each, and the rules of "auto"."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from condconv.ops.geometry import Geometry, output_memory_format


class Problem(NamedTuple):
    """What a choice may depend on: shapes, device, layout, and who records the graph.

    `batch` is `None` while a graph is recorded (`torch.compile`, `torch.export`): a choice that looked at it
    would fix the graph to one batch size.
    """

    batch: int | None
    num_experts: int
    output_pixels: int
    taps: int
    depthwise: bool
    device: str
    channels_last: bool
    needs_grad: bool
    compiling: bool
    exporting: bool
    transforming: bool


def describe(x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry) -> Problem:
    """Return the `Problem` of a call whose arguments have been checked."""
    compiling, exporting = torch.compiler.is_compiling(), torch.compiler.is_exporting()
    tensors = (x, weight, routing_weights, bias)
    return Problem(
        batch=None if compiling or exporting else x.shape[0],
        num_experts=weight.shape[0],
        output_pixels=prod(geometry.output_size(x.shape[2:], weight.shape[3:])),
        taps=prod(weight.shape[3:]),
        depthwise=geometry.groups > 1 and weight.shape[2] == 1,
        device=x.device.type,
        channels_last=output_memory_format(x) != torch.contiguous_format,
        needs_grad=torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors),
        compiling=compiling or exporting,
        exporting=exporting,
        transforming=not compiling and not exporting and _transforming(),
    )


def _transforming() -> bool:
    """Return whether a `torch.func` transform or forward-mode differentiation is going on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def why_not_reference(problem: Problem) -> str | None:
    """Return why the loop over examples cannot run, or `None`."""
    if problem.compiling:
        return "its loop over the examples would fix the graph to one batch size"
    return None


def why_not_mix_outputs(problem: Problem) -> str | None:
    """Return `None`: one static convolution runs anywhere."""
    return None


def why_not_grouped(problem: Problem) -> str | None:
    """Return why folding the batch into the groups cannot run, or `None`."""
    if problem.exporting:
        return "groups = batch would fix the exported graph to one batch size"
    return None


def why_not_matmul(problem: Problem) -> str | None:
    """Return `None`: matrix products run anywhere."""
    return None


def why_not_per_example(problem: Problem) -> str | None:
    """Return why one library convolution an example cannot run, or `None`."""
    if problem.exporting:
        return "its loop over the examples would fix the exported graph to one batch size"
    return None


WHY_NOT: dict[str, Callable[[Problem], str | None]] = {
    "reference": why_not_reference,
    "mix_outputs": why_not_mix_outputs,
    "grouped": why_not_grouped,
    "matmul": why_not_matmul,
    "per_example": why_not_per_example,
}


def must_be_plain(problem: Problem, impl: str) -> bool:
    """Return whether `impl` runs as plain torch functions instead of inside the registered operator.

    An exported graph must not need this package to load; a compiler fuses what it sees; and a registered
    operator's backward does not compose with `torch.func` transforms, where kernels are kept for backward.
    """
    if problem.compiling and not problem.exporting:
        return impl == "matmul" and not problem.needs_grad
    return problem.exporting or problem.transforming


def choose(problem: Problem) -> str:
    """Return the implementation "auto" stands for.

    The rules, in order; the CPU ones were measured on two x86 cores with 8 experts
    (`benchmarks/results/selection-cpu.json`), the rest follows from counting memory traffic:

    1. One output pixel or one expert: convolving E times costs what mixing would, and stores no kernel.
    2. Exporting, compiling without gradients, or inside `torch.func` transforms: matmul, which all see through.
    3. Pointwise: matmul.
    4. CPU, depthwise, channels_last and at least 400 output pixels: per_example, which keeps the layout.
    5. CPU, dense: per_example, whose one kernel stays in cache.
    6. Else grouped.
    """
    if problem.num_experts == 1 or problem.output_pixels == 1:
        return "mix_outputs"
    if must_be_plain(problem, "matmul") or problem.taps == 1:
        return "matmul"
    if problem.device == "cpu":
        if not problem.depthwise:
            return "per_example"
        if problem.channels_last and problem.output_pixels >= 400:
            return "per_example"
    return "grouped"


def resolve(impl: str, problem: Problem) -> str:
    """Return the implementation that `impl` names.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The named implementation cannot run this call.
    """
    if impl == "auto":
        return choose(problem)
    if impl not in WHY_NOT:
        raise ValueError(f"impl must be 'auto' or one of {', '.join(WHY_NOT)}, got {impl!r}")
    reason = WHY_NOT[impl](problem)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}; use impl='auto' or 'matmul'")
    return impl
