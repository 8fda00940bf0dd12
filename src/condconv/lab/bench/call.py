"""Call overhead: the time of a layer too small to take time, minus that of torch's convolution of the same size."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from condconv.lab.bench import targets
from condconv.lab.bench.contender import DTYPES, Conditions
from condconv.lab.bench.timing import spread, time_by_turns
from condconv.ops import cond_conv2d

_SIZE = (8, 8, 4)  # experts, channels in and out, pixels in each direction


@dataclass(frozen=True)
class CallCost:
    """Times of one call in inference, in microseconds.

    Attributes:
        static: Of `torch.nn.functional.conv2d`, median.
        ours: Of `cond_conv2d`, median.
        added: Median over the repetitions of the difference within one.
        low: First quartile of the differences.
        high: Third quartile.
        target: The most the difference may be.
        verdict: "pass" or "miss".
    """

    static: float
    ours: float
    added: float
    low: float
    high: float
    target: float
    verdict: str

    def __str__(self) -> str:
        return (
            f"{self.added:.1f} [{self.low:.1f} {self.high:.1f}] us more than torch's convolution, which takes "
            f"{self.static:.1f} us; target {self.target:.0f} us: {self.verdict}"
        )


def measure_call(conditions: Conditions, repetitions: int) -> CallCost:
    """Measure the call overhead: time a layer too small to take time and torch's convolution in turn.

    Args:
        conditions: Device, dtype and implementation; the mode is inference, nothing is compiled.
        repetitions: Measurements of each.
    """
    experts, channels, size = _SIZE
    where: dict[str, Any] = {"device": conditions.device, "dtype": DTYPES[conditions.dtype]}
    x = torch.randn(1, channels, size, size, **where).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(experts, channels, channels, 1, 1, **where)
    kernel, routing = weight[0].clone(), torch.rand(1, experts, **where)
    impl = conditions.impl or "auto"
    with torch.inference_mode():
        calls = {"static": lambda: F.conv2d(x, kernel), "ours": lambda: cond_conv2d(x, weight, routing, impl=impl)}
        times = time_by_turns(calls, repetitions, cuda=conditions.device.startswith("cuda"))
    static, ours = ([1e6 * each for each in times[name]] for name in calls)
    differences = [own - other for own, other in zip(ours, static, strict=True)]
    added = spread(differences)
    target = targets.CALL_MICROSECONDS
    return CallCost(
        *(statistics.median(static), statistics.median(ours), added.median, added.low, added.high),
        *(target, str(targets.verdict(added.median, target))),
    )
