"""Call overhead: how long a layer too small to take time takes, next to torch's convolution of the same size."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from condconv.lab.bench import targets
from condconv.lab.bench.contender import DTYPES, LAYOUTS, Conditions
from condconv.lab.bench.timing import time_by_turns
from condconv.nn import CondConv2d
from condconv.ops import cond_conv2d
from condconv.ops.implementations import AUTO

_EXPERTS, _CHANNELS, _PIXELS = 4, 8, 4
_ROUNDS, _SECONDS = 20, 2e-4
"""Rounds of each repetition, and least duration of one: so short that many are not disturbed by other processes."""


@dataclass(frozen=True)
class CallCost:
    """Times of one call in inference, in microseconds; of the layout whose ratio is larger.

    Each is the 5th percentile of many short rounds.

    Attributes:
        static: Of `torch.nn.functional.conv2d`.
        ours: Of `cond_conv2d`.
        ratio: Of the latter to the former.
        target: The most it may be.
        verdict: "pass" or "miss".
        layer_static: Of `torch.nn.Conv2d`; `None` in files older than its measurement.
        layer: Of `CondConv2d`, which routes; or `None`.
    """

    static: float
    ours: float
    ratio: float
    target: float
    verdict: str
    layer_static: float | None = None
    layer: float | None = None

    def __str__(self) -> str:
        text = (
            f"cond_conv2d takes {self.ours:.1f} us, {self.ratio:.2f} times torch's {self.static:.1f} us; "
            f"target {self.target}: {self.verdict}"
        )
        if self.layer is None or self.layer_static is None:
            return text
        return text + (
            f"; CondConv2d with its routing takes {self.layer:.1f} us, {self.layer / self.layer_static:.2f} times "
            f"nn.Conv2d's {self.layer_static:.1f} us"
        )


def measure_call(conditions: Conditions, repetitions: int) -> CallCost:
    """Measure the call overhead: time layers too small to take time and torch's in turn, contiguous and channels_last.

    Args:
        conditions: Device, dtype and implementation; the mode is inference, nothing is compiled.
        repetitions: Measurements of each, as for other times; here each is many short ones.
    """
    costs = [_measure_layout(layout, conditions, repetitions) for layout in LAYOUTS.values()]
    return max(costs, key=lambda cost: cost.ratio)


def _measure_layout(layout: torch.memory_format, conditions: Conditions, repetitions: int) -> CallCost:
    where: dict[str, Any] = {"device": conditions.device, "dtype": DTYPES[conditions.dtype]}
    impl = conditions.impl or AUTO
    x = torch.randn(1, _CHANNELS, _PIXELS, _PIXELS, **where).contiguous(memory_format=layout)
    sizes = (_CHANNELS, _CHANNELS, 3)
    layer = CondConv2d(*sizes, padding=1, num_experts=_EXPERTS, impl=impl, **where).eval().to(memory_format=layout)
    static = nn.Conv2d(*sizes, padding=1, **where).eval().to(memory_format=layout)
    experts, kernel, routing = layer.weight, static.weight, torch.rand(1, _EXPERTS, device=conditions.device)
    calls: dict[str, Callable[[], object]] = {
        "static": lambda: F.conv2d(x, kernel, padding=1),
        "ours": lambda: cond_conv2d(x, experts, routing, padding=1, impl=impl),
        "layer static": lambda: static(x),
        "layer": lambda: layer(x),
    }
    with torch.inference_mode():
        times = time_by_turns(calls, _ROUNDS * repetitions, _SECONDS, cuda=conditions.device.startswith("cuda"))
    low = {name: 1e6 * statistics.quantiles(each, n=20, method="inclusive")[0] for name, each in times.items()}
    ratio, target = low["ours"] / low["static"], targets.CALL_RATIO
    verdict = str(targets.verdict(ratio, target))
    return CallCost(low["static"], low["ours"], ratio, target, verdict, low["layer static"], low["layer"])
