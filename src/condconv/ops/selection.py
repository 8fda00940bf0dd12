"""Which implementation runs: the one place that knows the limits of each, and the rules of "auto"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from condconv.errors import UsageError, shown
from condconv.ops.geometry import Geometry, output_memory_format
from condconv.ops.mixing import accumulation_dtype
from condconv.ops.native import library
from condconv.ops.scalars import one_of
from condconv.ops.triton import limits as triton_limits

_CACHED_NUMBERS = 2**23  # 32 MB in fp32
AMX: bool = torch.cpu._is_amx_tile_supported()
"""Whether the CPU has matrix instructions, which torch's convolutions in bf16 use. Asked once, as it never changes."""


class Problem(NamedTuple):
    """What a choice may depend on: shapes, device, layout, and what records the graph.

    `batch` is `None` while a graph is recorded (`torch.compile`, `torch.export`, `torch.jit.trace`): a choice that
    looked at it would fix the graph to one batch size. `quantized` is the dtype of quantized experts, `None` for
    ordinary ones; `dtypes` are those of x and of the experts, quantized ones widened.
    """

    batch: int | None
    num_experts: int
    kernel_numel: int
    input_numel: int
    input_pixels: int
    output_numel: int
    output_pixels: int
    taps: int
    groups: int
    depthwise: bool
    transposed: bool
    spatial: int
    dtypes: tuple[torch.dtype, ...]
    quantized: torch.dtype | None
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
    *,
    quantized: bool = False,
    input_size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    traced: bool = False,
) -> Problem:
    """Return the `Problem` of a call whose arguments have been checked.

    Args:
        x: As in the operation, like all tensors.
        weight: Experts.
        routing_weights: Only whether they need a gradient matters.
        bias: As `routing_weights`.
        geometry: The convolution.
        pixels: Positions of the output.
        quantized: Whether the experts are quantized.
        input_size: Spatial size of x once it is padded; `None` for its own.
        dtype: What x is cast to under autocast; `None` for its own.
        traced: Whether `torch.jit.trace` records, which is to be exported to a file too.
    """
    dtype = dtype or x.dtype
    input_pixels = prod(x.shape[2:] if input_size is None else input_size)
    # Not is_exporting(), which the compiler of torch 2.11 takes for true in all that it compiles.
    compiling, exporting = torch.compiler.is_compiling(), traced or torch.compiler._is_exporting_flag
    tensors = (x, weight, routing_weights, bias)
    return Problem(
        batch=None if compiling or exporting else x.shape[0],
        num_experts=weight.shape[0],
        kernel_numel=prod(weight.shape[1:]),
        input_numel=x.shape[1] * input_pixels,
        input_pixels=input_pixels,
        output_numel=geometry.out_channels(weight) * pixels,
        output_pixels=pixels,
        taps=prod(weight.shape[3:]),
        groups=geometry.groups,
        depthwise=geometry.is_depthwise(weight),
        transposed=geometry.transposed,
        spatial=len(geometry.stride),
        dtypes=(dtype, accumulation_dtype(dtype) if quantized else weight.dtype),
        quantized=weight.dtype if quantized else None,
        device=x.device.type,
        channels_last=output_memory_format(x) != torch.contiguous_format,
        needs_grad=torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors),
        compiling=compiling or exporting,
        exporting=exporting,
        transforming=not compiling and not exporting and transforming(),
    )


def transforming() -> bool:
    """Return whether a `torch.func` transform or forward-mode differentiation is active."""
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


def why_not_loop(problem: Problem) -> str | None:
    """Return why one library convolution per example cannot run, or `None`."""
    if problem.exporting:
        return "its loop over the examples would fix the exported graph to one batch size"
    return None


def _why_not_kernels(problem: Problem, computes: str, dtypes: tuple[torch.dtype, ...], most_taps: int) -> str | None:
    """Return why kernels written for two dimensions cannot run, or `None`: what native and triton have in common."""
    other = [str(dtype).removeprefix("torch.") for dtype in problem.dtypes if dtype not in dtypes]
    if other:
        return f"its kernels compute {computes}, x or weight is {other[0]}"
    if problem.transposed or problem.spatial != 2:
        return "it has kernels for two-dimensional convolutions only, not transposed ones"
    if problem.taps > most_taps:
        return f"its kernels have at most {most_taps} taps, got {problem.taps}"
    return None


def why_not_native(problem: Problem) -> str | None:
    """Return why the compiled kernels cannot run, or `None`."""
    if problem.device != "cpu":
        return f"its kernels are for the CPU, x is on {problem.device}"
    computes = "in fp32 for fp32, bf16 and fp16"
    if (reason := _why_not_kernels(problem, computes, library.DTYPES, library.MOST_TAPS)) is not None:
        return reason
    if problem.exporting or problem.transforming:
        return "an exported graph and torch.func transforms need plain torch functions"
    return library.WHY_NOT


def why_not_triton(problem: Problem) -> str | None:
    """Return why the kernels for the GPU cannot run, or `None`."""
    if (reason := triton_limits.why_not(problem.device)) is not None:
        return reason
    computes = "in fp32, bf16 and fp16"
    if (reason := _why_not_kernels(problem, computes, triton_limits.DTYPES, triton_limits.MOST_TAPS)) is not None:
        return reason
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
    "loop": why_not_loop,
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


class ImplRule(NamedTuple):
    """One line of the table behind "auto".

    Attributes:
        impl: The implementation it takes.
        where: What calls it is for, in words.
        holds: The same as a predicate; it is asked only where no rule before it holds.
        because: The reason, or what measured it; `docs/performance.md` has the figures.
    """

    impl: str
    where: str
    holds: Callable[[Problem], bool]
    because: str


MEASURED = "measured"
"""The reason of a rule that stands on `benchmarks/results/selection-cpu.json`."""

_COUNTED = "convolving E times costs what mixing would, and stores no kernel"
_MISREAD = "torch's own kernel reads uninitialised padding there, and may give NaN"

RULES = (
    ImplRule(
        "mix_outputs",
        "one expert, but not with groups in bf16 on a CPU with AMX",
        lambda problem: problem.num_experts == 1 and not _reads_quantized(problem) and not _misread(problem),
        _COUNTED,
    ),
    ImplRule(
        "mix_outputs",
        "pointwise, ungrouped, from one pixel to one, in fp32 or fp64; but quantized experts by native",
        lambda problem: _is_product(problem) and not _reads_quantized(problem) and not _is_short(problem),
        MEASURED,
    ),
    ImplRule(
        "native",
        "CPU, two dimensions, fp32; not exported, not in torch.func, not contiguous where turning x around shows",
        lambda problem: problem.dtypes[0] == torch.float32 and _native_pays(problem),
        MEASURED,
    ),
    ImplRule(
        "native",
        "CPU, two dimensions, bf16; depthwise, dense up to 256 output pixels, pointwise up to 64, or quantized experts",
        lambda problem: problem.dtypes[0] == torch.bfloat16 and _native_pays(problem) and _few_pixels(problem),
        MEASURED,
    ),
    ImplRule(
        "native",
        "CPU, two dimensions, fp16",
        lambda problem: problem.dtypes[0] == torch.float16 and _native_pays(problem),
        "torch's products take 3 to 50 times as long where a CPU has no instructions for fp16",
    ),
    ImplRule(
        "native",
        "CPU with AMX, two dimensions, bf16; where torch's convolution would have groups, also one per example",
        lambda problem: (_misread(problem) or _folds_to_misread(problem)) and why_not_native(problem) is None,
        _MISREAD,
    ),
    ImplRule(
        "matmul",
        "the same in other dimensions, transposed, or without the compiled kernels",
        lambda problem: _misread(problem) or _folds_to_misread(problem),
        _MISREAD,
    ),
    ImplRule("mix_outputs", "one output pixel", lambda problem: problem.output_pixels == 1, _COUNTED),
    ImplRule(
        "matmul",
        "export, torch.func, and what else is compiled without gradients",
        lambda problem: must_be_plain(problem, "matmul"),
        "all of them see through it, and it leaves the batch open",
    ),
    ImplRule(
        "loop",
        "CPU, pointwise, kernels of the batch beyond 32 MB",
        lambda problem: _pointwise(problem) and _on_cpu(problem) and _kernels(problem) > _CACHED_NUMBERS,
        "memory: as fast in inference, slower in training, but no batch of kernels is kept",
    ),
    ImplRule("matmul", "pointwise", lambda problem: _pointwise(problem), MEASURED),
    ImplRule(
        "grouped",
        "not on a CPU",
        lambda problem: not _on_cpu(problem),
        "one call, whose kernels for all groups run at once; triton has not been timed on a GPU yet",
    ),
    ImplRule(
        "grouped",
        "CPU, dense, training, experts beyond 32 MB",
        lambda problem: not problem.depthwise and _outgrows(problem),
        "each example would go through all experts again",
    ),
    ImplRule(
        "grouped",
        "CPU, dense, not compiled, up to a million multiply-adds per example, kernels of the batch up to 32 MB",
        lambda problem: not problem.depthwise and _is_small(problem),
        MEASURED,
    ),
    ImplRule("loop", "CPU, dense", lambda problem: not problem.depthwise, MEASURED),
    ImplRule(
        "grouped",
        "CPU, depthwise, contiguous, output of the batch up to 32 MB",
        lambda problem: not problem.channels_last and _outputs(problem) <= _CACHED_NUMBERS,
        MEASURED,
    ),
    ImplRule("loop", "CPU, depthwise", lambda problem: True, MEASURED),
)
"""What "auto" stands for: the first of these rules that holds. Sizes are those of fp32 numbers."""


def _reads_quantized(problem: Problem) -> bool:
    return problem.quantized is not None and why_not_native(problem) is None


def _native_pays(problem: Problem) -> bool:
    return why_not_native(problem) is None and not _turning_shows(problem)


def _few_pixels(problem: Problem) -> bool:
    """Return whether mixing weighs so much that it pays to compute in fp32 where torch's products take bf16."""
    most = 64 if _pointwise(problem) else 256
    return problem.depthwise or problem.output_pixels <= most or problem.quantized is not None


def _turning_shows(problem: Problem) -> bool:
    """Return whether converting x to channels_last and back costs at least 1/64 of the multiply-adds.

    That is every depthwise layer, and pointwise ones of few channels. Quantized experts are worth it. A map of one
    pixel is laid out the same either way.
    """
    product = problem.kernel_numel * problem.output_pixels
    maps = ((problem.input_numel, problem.input_pixels), (problem.output_numel, problem.output_pixels))
    moved = sum(numel for numel, pixels in maps if pixels > 1)
    return not problem.channels_last and 64 * moved > product and problem.quantized is None


def _on_cpu(problem: Problem) -> bool:
    return problem.device == "cpu"


def _pointwise(problem: Problem) -> bool:
    return problem.taps == 1 and not problem.depthwise


def _is_product(problem: Problem) -> bool:
    """Return whether each input number has a weight for each output number, and there is one pixel of both."""
    # Each number with one, not with another: a graph whose sizes are open would hold what they were compared with.
    pixels = problem.taps == 1 and problem.input_pixels == 1 and problem.output_pixels == 1
    return pixels and problem.kernel_numel == problem.input_numel * problem.output_numel


def _is_short(problem: Problem) -> bool:
    """Return whether x is bf16 or fp16, whose products the compiled kernels take in fp32: on many CPUs 3 times faster.

    Where those do not run, the rule for one output pixel takes the products after all.
    """
    return problem.dtypes[0].itemsize < torch.float32.itemsize


def _kernels(problem: Problem) -> int:
    return (problem.batch or 1) * problem.kernel_numel


def _experts(problem: Problem) -> int:
    return problem.num_experts * problem.kernel_numel


def _outgrows(problem: Problem) -> bool:
    """Return whether each example of a batch in training would go through experts that no cache holds."""
    return problem.needs_grad and _experts(problem) > _CACHED_NUMBERS


def _is_small(problem: Problem) -> bool:
    """Return whether to call a convolution for one example takes longer than to compute it, and kernels can be kept."""
    products = problem.kernel_numel * (problem.input_pixels if problem.transposed else problem.output_pixels)
    return not problem.compiling and products <= 2**20 and _kernels(problem) <= _CACHED_NUMBERS


def _misread(problem: Problem) -> bool:
    """Return whether a convolution of torch's would have groups and compute in bf16 on a CPU with AMX.

    The case: a grouped or depthwise layer in bf16, or a dense one whose batch is folded into groups. On such CPUs the
    library below torch reads uninitialised padding there, so the output is NaN if that memory happens to hold NaN;
    "native" and "matmul" are right. (oneDNN's issue 5717 is of the same kind: numbers next to a row, which AMX reads
    with it, are multiplied by zero, which keeps a NaN.)
    """
    return AMX and _on_cpu(problem) and problem.dtypes[0] == torch.bfloat16 and problem.groups > 1


def _folds_to_misread(problem: Problem) -> bool:
    """Return whether a layer without groups would get them, one per example, and be misread then."""
    folds = not _pointwise(problem) and (_outgrows(problem) or _is_small(problem))
    return folds and _misread(problem._replace(groups=problem.batch or 1))


def _outputs(problem: Problem) -> int:
    return (problem.batch or 1) * problem.output_numel


def choose(problem: Problem) -> ImplRule:
    """Return the first rule that holds."""
    return next(rule for rule in RULES if rule.holds(problem))


def check_impl(impl: Any) -> str:
    """Return the name of an implementation, or "auto", as plain text.

    Raises:
        UsageError: It is not one.
    """
    return one_of("impl", impl, ("auto", *WHY_NOT), 'take "auto", which chooses by what was measured')


def resolve(impl: str, problem: Problem) -> str:
    """Return the implementation that a name stands for, "auto" or one of `WHY_NOT`.

    Raises:
        UsageError: The named implementation cannot run this call.
    """
    if impl == "auto":
        return choose(problem).impl
    reason = WHY_NOT[impl](problem)
    if reason is not None:
        raise UsageError(f"`impl` must be able to run this call, got {shown(impl)}: {reason}; take 'auto' or 'matmul'")
    return impl
