"""Time in turn, compare within a turn, and count the bytes of one call."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from condconv.lab.bench.contender import Contender

SECONDS = 0.02
"""Least duration of one measurement; shorter calls are repeated to fill it."""


@dataclass(frozen=True)
class Spread:
    """One measurement per repetition: the median, and the quartiles.

    Attributes:
        median: Over the repetitions.
        low: First quartile.
        high: Third quartile.
    """

    median: float
    low: float
    high: float


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the rest of the process; return whether it does.

    Otherwise a large output comes in fresh pages, or does not, by what was freed before it. Fresh pages cost more than
    many a layer: the ratio of a depthwise layer was 1.1 in one run and 4.9 in the next.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    # From malloc.h: M_MMAP_MAX, no block of its own for what is large; M_TRIM_THRESHOLD, nothing is given back.
    return bool(mallopt(-4, 0)) and bool(mallopt(-1, -1))


def time_by_turns(
    calls: Mapping[str, Callable[[], object]], repetitions: int, seconds: float = SECONDS, cuda: bool = False
) -> dict[str, list[float]]:
    """Time several calls alternately, so that a change of the machine's speed affects all of them.

    Each is called twice first, to warm up and to see how often it fits. The garbage collector waits meanwhile.

    Args:
        calls: What to time, by name.
        repetitions: How many times each is measured.
        seconds: As `SECONDS`.
        cuda: Whether to wait for the GPU before the clock is read.

    Returns:
        Seconds of one call, one value per repetition, by name.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        loops = {}
        for name, call in calls.items():
            _seconds(call, 1, cuda)
            loops[name] = max(1, round(seconds / max(_seconds(call, 1, cuda), 1e-9)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repetitions):
            for name, call in calls.items():
                times[name].append(_seconds(call, loops[name], cuda))
    finally:
        if enabled:
            gc.enable()
    return times


def _seconds(call: Callable[[], object], loops: int, cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(loops):
        call()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / loops


def ratio(times: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the ratio of times from the same repetitions, each computed within one."""
    return spread([own / other for own, other in zip(times, base, strict=True)])


def spread(values: Sequence[float]) -> Spread:
    """Return the median of values, and the quartiles; of one value, itself."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def peak_bytes(contender: Contender) -> int:
    """Return the bytes of the parameters, and the peak of one call beyond what was there before.

    On the CPU it adds up what torch's allocator gives and takes back, as its profiler records it. Buffers that a
    kernel gets elsewhere are not in it: a few megabytes a thread for the compiled kernels and for oneDNN.
    """
    contender()
    contender.clear_gradients()
    if torch.device(contender.device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender()
        torch.cuda.synchronize()
        return contender.parameter_bytes() + torch.cuda.max_memory_allocated() - before
    return contender.parameter_bytes() + _peak_on_cpu(contender)


def _peak_on_cpu(call: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    events = [] if results is None else [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
