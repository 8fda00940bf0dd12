"""Time every implementation on the layers that matter: where the rules of `impl="auto"` come from.

    python benchmarks/selection.py --output benchmarks/results/selection-cpu.json
    python benchmarks/selection.py --dtype bf16 --output benchmarks/results/selection-cpu-bf16.json

Each layer is timed in one run, the implementations and the static convolution alternately, so that a change of the
machine's speed meets all of them. Times are given as ratios to the static convolution in its faster layout: the median
over the repetitions of ratios taken within a repetition, with the quartiles. An implementation whose output differs
from the reference is not timed: the run stops.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from condconv.lab.bench import contender
from condconv.lab.bench.timing import keep_freed_memory
from condconv.nn.choice import choose_named
from condconv.ops import cond_conv2d
from condconv.ops.geometry import Geometry
from condconv.ops.implementations import NATIVE
from condconv.ops.problem import describe
from condconv.ops.rules import RULES

NUM_EXPERTS = 8
# mix_outputs only where there is one pixel: with 49 pixels or more it took 4 to 100 times the static convolution.
IMPLS = ("grouped", "matmul", "loop", "native")
DTYPES = {**contender.DTYPES, "fp16": torch.float16}


@dataclass(frozen=True)
class Layer:
    """A convolution: channels, kernel size, input size in pixels, whether depthwise."""

    in_channels: int
    out_channels: int
    kernel: int
    size: int
    depthwise: bool = False

    @property
    def name(self) -> str:
        """Describe it as `672->112 1x1 @14`."""
        kind = "dw " if self.depthwise else ""
        return f"{kind}{self.in_channels}->{self.out_channels} {self.kernel}x{self.kernel} @{self.size}"


LAYERS = (
    Layer(672, 112, 1, 14),
    Layer(192, 1152, 1, 7),
    Layer(1152, 320, 1, 7),
    Layer(64, 256, 1, 56),
    Layer(672, 672, 5, 14, True),
    Layer(1152, 1152, 3, 7, True),
    Layer(144, 144, 3, 56, True),
    Layer(64, 64, 3, 56),
    Layer(256, 256, 3, 14),
    Layer(512, 512, 3, 7),
    Layer(3, 32, 3, 32),
    Layer(8, 16, 3, 14),
    Layer(16, 24, 3, 16),
    Layer(16, 32, 3, 8),
    Layer(256, 256, 1, 1),
    Layer(1280, 1000, 1, 1),
)


def impls_for(layer: Layer) -> tuple[str, ...]:
    """Return the implementations that are timed on a layer."""
    return (*IMPLS, "mix_outputs") if layer.size == 1 else IMPLS


def find_rules(layer: Layer, conditional: tuple[Tensor, Tensor, Tensor], training: bool) -> dict[str, str]:
    """Return which rule of "auto" decides, as its table puts it, with the compiled kernels and without."""
    x, experts, routing = conditional
    geometry = Geometry((1, 1), (layer.kernel // 2,) * 2, (1, 1), layer.in_channels if layer.depthwise else 1)
    problem = describe(x.requires_grad_(training), experts, routing, None, geometry, layer.size**2)
    holding = [rule for rule in RULES if rule.holds(problem)]
    return {"rule": holding[0].where, "otherwise": next(rule.where for rule in holding if rule.takes is not NATIVE)}


def make_calls(
    layer: Layer, dtype: torch.dtype, batch: int, channels_last: bool, training: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Return what is timed, by name: the static layer in both layouts, implementations in one; and "auto"'s rules."""
    groups = layer.in_channels if layer.depthwise else 1
    options: dict[str, Any] = {"padding": layer.kernel // 2, "groups": groups}
    shape = (layer.out_channels, layer.in_channels // groups, layer.kernel, layer.kernel)
    x = torch.randn(batch, layer.in_channels, layer.size, layer.size).to(dtype)
    experts, routing = torch.randn(NUM_EXPERTS, *shape).to(dtype), torch.rand(batch, NUM_EXPERTS)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = {
        "static": (x, experts[0].clone()),
        "static channels_last": tuple(
            tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, experts[0])
        ),
    }
    laid_out = experts.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, (NUM_EXPERTS, -1))
    conditional = (x.contiguous(memory_format=layout), laid_out, routing)

    def call(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], **kwargs: Any) -> Callable[[], object]:
        if not training:
            return lambda: function(*tensors, **options, **kwargs)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        weighting = torch.ones_like(function(*tensors, **options, **kwargs))
        return lambda: torch.autograd.grad(function(*leaves, **options, **kwargs), leaves, weighting)

    exact = (conditional[0].double(), conditional[1].double(), conditional[2].double())
    expected = cond_conv2d(*exact, **options, impl="reference")
    allowed = max(1e-4, 4 * torch.finfo(dtype).eps)  # the mixed kernel is rounded, and the output
    calls = {name: call(F.conv2d, tensors) for name, tensors in inputs.items()}
    for impl in impls_for(layer):
        error = (cond_conv2d(*conditional, **options, impl=impl) - expected).abs().max() / expected.abs().max()
        if error > allowed:
            sys.exit(f"{impl} differs from the reference by {error:.1e} on {layer.name}: not timed")
        calls[impl] = call(cond_conv2d, conditional, impl=impl)
    return calls, find_rules(layer, conditional, training)


def time_alternately(
    calls: dict[str, Callable[[], object]], repetitions: int, seconds: float
) -> dict[str, list[float]]:
    """Return the seconds of each call in each repetition; quick calls are repeated within one."""
    loops = {}
    for name, call in calls.items():
        call()
        started = time.perf_counter()
        call()
        loops[name] = max(1, min(100, int(seconds / (time.perf_counter() - started))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(loops[name]):
                call()
            times[name].append((time.perf_counter() - started) / loops[name])
    return times


def measure(
    layer: Layer, dtype: torch.dtype, batch: int, channels_last: bool, training: bool, repetitions: int
) -> dict[str, Any]:
    """Return one row: milliseconds of the static convolution, and ratio and quartiles of each implementation."""
    with torch.set_grad_enabled(training):
        calls, rules = make_calls(layer, dtype, batch, channels_last, training)
        times = time_alternately(calls, repetitions, 0.01)
    static = min(times["static"], times["static channels_last"], key=statistics.median)
    row: dict[str, Any] = {
        "layer": layer.name,
        "batch": batch,
        "channels_last": channels_last,
        "training": training,
        **rules,
        "static_ms": 1e3 * statistics.median(static),
        "bound": (layer.size**2 + NUM_EXPERTS) / layer.size**2,
    }
    for impl in impls_for(layer):
        ratios = [own / base for own, base in zip(times[impl], static, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row[impl] = {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return row


def main() -> None:
    """Measure all layers, print a line each and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--layers", nargs="+", default=["*"], metavar="PATTERN", help="layers whose names fit one, such as '*@1'"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    rows = []
    for layer in choose_named({layer.name: layer for layer in LAYERS}, arguments.layers, argument="--layers").values():
        for batch in arguments.batches:
            for training in (False, True):
                for channels_last in (False, True):
                    row = measure(layer, DTYPES[arguments.dtype], batch, channels_last, training, arguments.repetitions)
                    rows.append(row)
                    ratios = "  ".join(f"{impl} {row[impl]['median']:6.2f}" for impl in impls_for(layer))
                    print(
                        f"{layer.name:24} B={batch:<3} {'train' if training else 'infer'} "
                        f"{'cl' if channels_last else '  '}  static {row['static_ms']:8.2f} ms  {ratios}",
                        flush=True,
                    )
    record = {
        "command": " ".join(["python", *sys.argv]),
        "machine": platform.machine(),
        "threads": arguments.threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dtype": arguments.dtype,
        "num_experts": NUM_EXPERTS,
        "repetitions": arguments.repetitions,
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
