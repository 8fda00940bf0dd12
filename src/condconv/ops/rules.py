"""Which implementation runs: the rules of "auto", and whether a named one can."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from condconv.errors import UsageError, shown
from condconv.ops.conditions import (
    CACHED_NUMBERS,
    few_pixels,
    folds_to_misread,
    is_misread,
    is_pointwise,
    is_product,
    is_short,
    is_small,
    kernel_numbers,
    native_pays,
    on_cpu,
    outgrows,
    output_numbers,
    reads_quantized,
)
from condconv.ops.implementation import Implementation
from condconv.ops.implementations import AUTO, GROUPED, LOOP, MATMUL, MIX_OUTPUTS, NATIVE, TABLE
from condconv.ops.problem import Problem


class ImplRule(NamedTuple):
    """One line of the table behind "auto".

    Attributes:
        takes: The implementation.
        where: What calls it is for, in words.
        holds: The same as a predicate; it is asked only where no rule before it holds.
        because: The reason, or what measured it; `docs/timings.md` has the figures.
    """

    takes: Implementation
    where: str
    holds: Callable[[Problem], bool]
    because: str


MEASURED = "measured"
"""The reason of a rule that stands on `benchmarks/results/selection-cpu.json`."""

_COUNTED = "convolving E times costs what mixing would, and stores no kernel"
_MISREAD = "torch's own kernel reads memory that is not its own there, and may give NaN"

RULES = (
    ImplRule(
        MIX_OUTPUTS,
        "one expert, but not where torch misreads bf16 on a CPU",
        lambda problem: problem.num_experts == 1 and not reads_quantized(problem) and not is_misread(problem),
        _COUNTED,
    ),
    ImplRule(
        MIX_OUTPUTS,
        "pointwise, ungrouped, from one pixel to one, in fp32 or fp64; but quantized experts by native",
        lambda problem: is_product(problem) and not reads_quantized(problem) and not is_short(problem),
        MEASURED,
    ),
    ImplRule(
        NATIVE,
        "CPU, two dimensions, fp32; not exported, not in torch.func, not contiguous where turning x around shows",
        lambda problem: problem.dtypes[0] == torch.float32 and native_pays(problem),
        MEASURED,
    ),
    ImplRule(
        NATIVE,
        "CPU, two dimensions, bf16; depthwise, dense up to 256 output pixels, pointwise up to 64, or quantized experts",
        lambda problem: problem.dtypes[0] == torch.bfloat16 and native_pays(problem) and few_pixels(problem),
        MEASURED,
    ),
    ImplRule(
        NATIVE,
        "CPU, two dimensions, fp16",
        lambda problem: problem.dtypes[0] == torch.float16 and native_pays(problem),
        "torch's products take 3 to 50 times as long where a CPU has no instructions for fp16",
    ),
    ImplRule(
        NATIVE,
        "CPU, two dimensions, bf16; with AMX: groups, also one per example; in training: kernels larger than the input",
        lambda problem: (is_misread(problem) or folds_to_misread(problem)) and NATIVE.why_not(problem) is None,
        _MISREAD,
    ),
    ImplRule(
        MATMUL,
        "the same in other dimensions, transposed, or without the compiled kernels",
        lambda problem: is_misread(problem) or folds_to_misread(problem),
        _MISREAD,
    ),
    ImplRule(MIX_OUTPUTS, "one output pixel", lambda problem: problem.output_pixels == 1, _COUNTED),
    ImplRule(
        MATMUL,
        "export, torch.func, and what else is compiled without gradients",
        lambda problem: MATMUL.must_be_plain(problem),
        "all of them see through it, and it leaves the batch open",
    ),
    ImplRule(
        LOOP,
        "CPU, pointwise, kernels of the batch beyond 32 MB",
        lambda problem: is_pointwise(problem) and on_cpu(problem) and kernel_numbers(problem) > CACHED_NUMBERS,
        "memory: as fast in inference, slower in training, but no batch of kernels is kept",
    ),
    ImplRule(MATMUL, "pointwise", lambda problem: is_pointwise(problem), MEASURED),
    ImplRule(
        GROUPED,
        "not on a CPU",
        lambda problem: not on_cpu(problem),
        "one call, whose kernels for all groups run at once; triton has not been timed on a GPU yet",
    ),
    ImplRule(
        GROUPED,
        "CPU, dense, training, experts beyond 32 MB",
        lambda problem: not problem.depthwise and outgrows(problem),
        "each example would go through all experts again",
    ),
    ImplRule(
        GROUPED,
        "CPU, dense, not compiled, up to a million multiply-adds per example, kernels of the batch up to 32 MB",
        lambda problem: not problem.depthwise and is_small(problem),
        MEASURED,
    ),
    ImplRule(LOOP, "CPU, dense", lambda problem: not problem.depthwise, MEASURED),
    ImplRule(
        GROUPED,
        "CPU, depthwise, contiguous, output of the batch up to 32 MB",
        lambda problem: not problem.channels_last and output_numbers(problem) <= CACHED_NUMBERS,
        MEASURED,
    ),
    ImplRule(LOOP, "CPU, depthwise", lambda problem: True, MEASURED),
)
"""What "auto" stands for: the first of these rules that holds. Sizes are those of fp32 numbers."""


def choose(problem: Problem) -> ImplRule:
    """Return the first rule that holds."""
    return next(rule for rule in RULES if rule.holds(problem))


def resolve(impl: str, problem: Problem) -> Implementation:
    """Return the implementation that a checked name stands for.

    Raises:
        UsageError: The named implementation cannot run this call.
    """
    if impl == AUTO:
        return choose(problem).takes
    reason = TABLE[impl].why_not(problem)
    if reason is not None:
        remedy = f"take {AUTO!r} or {MATMUL.name!r}"
        raise UsageError(f"`impl` must be able to run this call, got {shown(impl)}: {reason}; {remedy}")
    return TABLE[impl]
