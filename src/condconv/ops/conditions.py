"""What the rules of "auto" ask of a call."""

from __future__ import annotations

import torch

from condconv.ops.implementations import NATIVE
from condconv.ops.problem import Problem

CACHED_NUMBERS = 2**23
"""Of fp32: 32 MB."""
AMX: bool = torch.cpu._is_amx_tile_supported()
"""Whether the CPU has matrix instructions, which torch's convolutions in bf16 use. Asked once, as it never changes."""


def reads_quantized(problem: Problem) -> bool:
    """Return whether the compiled kernels read quantized experts as they are."""
    return problem.quantized is not None and NATIVE.why_not(problem) is None


def native_pays(problem: Problem) -> bool:
    """Return whether the compiled kernels can run, and need not turn much around."""
    return NATIVE.why_not(problem) is None and not turning_shows(problem)


def few_pixels(problem: Problem) -> bool:
    """Return whether mixing weighs so much that it pays to compute in fp32 where torch's products take bf16."""
    most = 64 if is_pointwise(problem) else 256
    return problem.depthwise or problem.output_pixels <= most or problem.quantized is not None


def turning_shows(problem: Problem) -> bool:
    """Return whether converting x to channels_last and back costs at least 1/64 of the multiply-adds.

    That is every depthwise layer, and pointwise ones of few channels. Quantized experts are worth it. A map of one
    pixel is laid out the same either way.
    """
    product = problem.kernel_numel * problem.output_pixels
    maps = ((problem.input_numel, problem.input_pixels), (problem.output_numel, problem.output_pixels))
    moved = sum(numel for numel, pixels in maps if pixels > 1)
    return not problem.channels_last and 64 * moved > product and problem.quantized is None


def on_cpu(problem: Problem) -> bool:
    """Return whether x is on the CPU."""
    return problem.device == "cpu"


def is_pointwise(problem: Problem) -> bool:
    """Return whether a kernel has one tap, and mixes channels."""
    return problem.taps == 1 and not problem.depthwise


def is_product(problem: Problem) -> bool:
    """Return whether each input number has a weight for each output number, and there is one pixel of both."""
    # Each number with one, not with another: a graph whose sizes are open would hold what they were compared with.
    pixels = problem.taps == 1 and problem.input_pixels == 1 and problem.output_pixels == 1
    return pixels and problem.kernel_numel == problem.input_numel * problem.output_numel


def is_short(problem: Problem) -> bool:
    """Return whether x is bf16 or fp16, whose products the compiled kernels take in fp32: on many CPUs 3 times faster.

    Where those do not run, the rule for one output pixel takes the products after all.
    """
    return problem.dtypes[0].itemsize < torch.float32.itemsize


def kernel_numbers(problem: Problem) -> int:
    """Return how many numbers the kernels of all examples have."""
    return (problem.batch or 1) * problem.kernel_numel


def expert_numbers(problem: Problem) -> int:
    """Return how many numbers the experts have."""
    return problem.num_experts * problem.kernel_numel


def outgrows(problem: Problem) -> bool:
    """Return whether each example of a batch in training would go through experts that no cache holds."""
    return problem.needs_grad and expert_numbers(problem) > CACHED_NUMBERS


def is_small(problem: Problem) -> bool:
    """Return whether to call a convolution for one example takes longer than to compute it, and kernels can be kept."""
    products = problem.kernel_numel * (problem.input_pixels if problem.transposed else problem.output_pixels)
    return not problem.compiling and products <= 2**20 and kernel_numbers(problem) <= CACHED_NUMBERS


def is_misread(problem: Problem) -> bool:
    """Return whether torch's convolution in bf16 on a CPU would read, or write, memory that is not its own.

    "native" and "matmul" are right in both cases:

    - With groups on a CPU with AMX: a grouped or depthwise layer, or a dense one whose batch is folded into groups. The
      library below torch reads uninitialised padding there, so the output is NaN if that memory happens to hold NaN.
      (oneDNN's issue 5717 is of the same kind: numbers next to a row, which AMX reads with it, are multiplied by zero,
      which keeps a NaN.)
    - In training, with a kernel that reaches over more pixels than x has along a dimension, or than the output has of a
      transposed convolution: on CPUs with AVX-512 the gradient of the kernel is then wrong by up to 1e38, NaN, or the
      process ends for a damaged heap (torch 2.14).
    """
    if not on_cpu(problem) or problem.dtypes[0] != torch.bfloat16:
        return False
    return (AMX and problem.groups > 1) or (problem.needs_grad and problem.overhangs)


def folds_to_misread(problem: Problem) -> bool:
    """Return whether a layer without groups would get them, one per example, and be misread then."""
    folds = not is_pointwise(problem) and (outgrows(problem) or is_small(problem))
    return folds and is_misread(problem._replace(groups=problem.batch or 1))


def output_numbers(problem: Problem) -> int:
    """Return how many numbers the outputs of all examples have."""
    return (problem.batch or 1) * problem.output_numel
