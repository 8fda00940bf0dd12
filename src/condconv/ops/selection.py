"""Which implementation runs: the one place that knows the limits of each, and the rules of "auto"."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from condconv.ops.geometry import Geometry, output_memory_format
from condconv.ops.mixing import accumulation_dtype
from condconv.ops.native import library
from condconv.ops.triton import limits as triton_limits

_CACHED_NUMBERS = 2**23  # 32 MB in fp32


class Problem(NamedTuple):
    """What a choice may depend on: shapes, device, layout, and who records the graph.

    `batch` is `None` while a graph is recorded (`torch.compile`, `torch.export`): a choice that looked at it
    would fix the graph to one batch size. `compact` is the dtype of compact experts, `None` for ordinary ones; `dtypes`
    are those of x and of the experts, compact ones widened.
    """

    batch: int | None
    num_experts: int
    kernel_numel: int
    input_numel: int
    output_numel: int
    output_pixels: int
    taps: int
    depthwise: bool
    transposed: bool
    spatial: int
    dtypes: tuple[torch.dtype, ...]
    compact: torch.dtype | None
    device: str
    channels_last: bool
    needs_grad: bool
    compiling: bool
    exporting: bool
    transforming: bool


def describe(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    pixels: int,
    compact: bool = False,
) -> Problem:
    """Return the `Problem` of a call whose arguments have been checked and whose output has `pixels` positions."""
    compiling, exporting = torch.compiler.is_compiling(), torch.compiler.is_exporting()
    tensors = (x, weight, routing_weights, bias)
    return Problem(
        batch=None if compiling or exporting else x.shape[0],
        num_experts=weight.shape[0],
        kernel_numel=prod(weight.shape[1:]),
        input_numel=prod(x.shape[1:]),
        output_numel=geometry.out_channels(weight) * pixels,
        output_pixels=pixels,
        taps=prod(weight.shape[3:]),
        depthwise=geometry.groups > 1 and weight.shape[2] == 1,
        transposed=geometry.transposed,
        spatial=len(geometry.stride),
        dtypes=(x.dtype, accumulation_dtype(x.dtype) if compact else weight.dtype),
        compact=weight.dtype if compact else None,
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


def why_not_native(problem: Problem) -> str | None:
    """Return why the compiled kernels cannot run, or `None`."""
    if problem.device != "cpu":
        return f"its kernels are for the CPU, x is on {problem.device}"
    other = [str(dtype).removeprefix("torch.") for dtype in problem.dtypes if dtype != torch.float32]
    if other:
        return f"its kernels compute in fp32, x or weight is {other[0]}"
    if problem.transposed or problem.spatial != 2:
        return "it has kernels for two-dimensional convolutions only, not transposed ones"
    if problem.taps > library.MOST_TAPS:
        return f"its kernels have at most {library.MOST_TAPS} taps, got {problem.taps}"
    if problem.exporting or problem.transforming:
        return "an exported graph and torch.func transforms need plain torch functions"
    return library.WHY_NOT


def why_not_triton(problem: Problem) -> str | None:
    """Return why the kernels for the GPU cannot run, or `None`."""
    if (reason := triton_limits.why_not(problem.device)) is not None:
        return reason
    other = [str(dtype).removeprefix("torch.") for dtype in problem.dtypes if dtype not in triton_limits.DTYPES]
    if other:
        return f"its kernels compute in fp32, bf16 and fp16, x or weight is {other[0]}"
    if problem.transposed or problem.spatial != 2:
        return "it has kernels for two-dimensional convolutions only, not transposed ones"
    if problem.taps > triton_limits.MOST_TAPS:
        return f"its kernels have at most {triton_limits.MOST_TAPS} taps, got {problem.taps}"
    if problem.num_experts > triton_limits.MOST_EXPERTS:
        return f"it mixes at most {triton_limits.MOST_EXPERTS} experts, got {problem.num_experts}"
    if problem.exporting or problem.transforming:
        return "an exported graph and torch.func transforms need plain torch functions"
    largest = max(problem.kernel_numel, problem.input_numel, problem.output_numel)
    if largest > triton_limits.MOST_NUMBERS:
        return f"an example or an expert has at most {triton_limits.MOST_NUMBERS} numbers, got {largest}"
    return None


WHY_NOT: dict[str, Callable[[Problem], str | None]] = {
    "reference": why_not_reference,
    "mix_outputs": why_not_mix_outputs,
    "grouped": why_not_grouped,
    "matmul": why_not_matmul,
    "per_example": why_not_per_example,
    "native": why_not_native,
    "triton": why_not_triton,
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

    The rules, in order; those for the CPU were measured with 8 experts on one x86 core
    (`benchmarks/results/selection-cpu.json`), the rest follows from counting memory traffic:

    1. One output pixel or one expert: convolving E times costs what mixing would, and stores no kernel. Not for compact
       experts where native can run: alone it reads them as they are.
    2. Exporting, compiling without gradients, or inside `torch.func` transforms: matmul, which all see through.
    3. On a CPU native, where it was compiled and can run.
    4. Else as `choose_library`. Not yet triton, which no GPU has been seen to run faster or slower than that.
    """
    compact = problem.compact is not None and why_not_native(problem) is None
    if not compact and (problem.num_experts == 1 or problem.output_pixels == 1):
        return "mix_outputs"
    if must_be_plain(problem, "matmul"):
        return "matmul"
    return "native" if why_not_native(problem) is None else choose_library(problem)


def choose_library(problem: Problem) -> str:
    """Return the best of the implementations that call torch's own convolutions and products.

    1. Pointwise: matmul; on a CPU per_example where the batch's kernels outgrow its caches.
    2. CPU, dense: per_example, whose one kernel stays in cache; but grouped where gradients are needed and the experts
       outgrow the caches, since every example would go through all of them again.
    3. CPU, depthwise: per_example in channels_last, which it keeps, or where the batch's output outgrows the caches.
    4. Else grouped.
    """
    batch = problem.batch or 1
    on_cpu = problem.device == "cpu"
    if problem.taps == 1 and not problem.depthwise:
        return "per_example" if on_cpu and batch * problem.kernel_numel > _CACHED_NUMBERS else "matmul"
    if not on_cpu:
        return "grouped"
    if not problem.depthwise:
        large = problem.num_experts * problem.kernel_numel > _CACHED_NUMBERS
        return "grouped" if problem.needs_grad and large else "per_example"
    if not problem.channels_last and batch * problem.output_numel <= _CACHED_NUMBERS:
        return "grouped"
    return "per_example"


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
