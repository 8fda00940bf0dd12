"""Networks in other runtimes, each compared with its static twin in the same runtime."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.export import export
from condconv.export.formats import FORMATS
from condconv.lab.bench.cases import NetworkCase
from condconv.lab.bench.timing import Spread, ratio, time_by_turns

RUNTIMES = ("torch-export", "aoti", "onnx", "openvino")
"""Formats whose files run here and take any batch size."""


@dataclass(frozen=True)
class RuntimeRow:
    """What one network costs in a runtime.

    Attributes:
        runtime: A key of `condconv.export.formats.FORMATS`.
        name: Of the network.
        batch: Number of images.
        milliseconds: Median time of a call of the conditional network.
        ratio: Time over the static twin's in the same runtime.
        bytes: Size of the file, of the conditional network and of its twin.
    """

    runtime: str
    name: str
    batch: int
    milliseconds: float
    ratio: Spread
    bytes: tuple[int, int]


def measure_runtime(case: NetworkCase, runtime: str, batches: Sequence[int], repetitions: int) -> Iterator[RuntimeRow]:
    """Export a network and its static twin, compare both files with the networks, and time them in turn.

    Args:
        case: The network.
        runtime: One of `RUNTIMES`.
        batches: Numbers of images; one file serves all of them.
        repetitions: Measurements of each.

    Yields:
        One row per batch size.

    Raises:
        MissingExtraError: The runtime is not installed.
        ExportError: A file does not compute what its network does.
    """
    torch.manual_seed(0)
    trio = case.make(max(batches))
    (images,) = trio.inputs
    with tempfile.TemporaryDirectory() as folder:
        written = [
            _write(model, Path(folder) / f"{name}{FORMATS[runtime].SUFFIX}", runtime, images[:1])
            for name, model in (("ours", trio.ours), ("static", trio.static))
        ]
        for batch in batches:
            inputs = images[:batch].contiguous()
            calls = {name: partial(call, inputs) for name, (call, _) in zip(("ours", "static"), written, strict=True)}
            times = time_by_turns(calls, repetitions)
            yield RuntimeRow(
                runtime=runtime,
                name=case.name,
                batch=batch,
                milliseconds=1e3 * statistics.median(times["ours"]),
                ratio=ratio(times["ours"], times["static"]),
                bytes=(written[0][1], written[1][1]),
            )


def _write(model: nn.Module, path: Path, runtime: str, example: Tensor) -> tuple[Callable[[Tensor], Tensor], int]:
    report = export(model, path, format=runtime, example_input=example)
    return FORMATS[runtime].load(path), report.bytes


def header() -> str:
    """Return the titles of the columns."""
    return f"{'network':<28} {'batch':>5} {'time':>10}  {'/ static':<20} {'file':>9} {'static':>9}"


def line(row: RuntimeRow) -> str:
    """Return a row as text."""
    spread = f"{row.ratio.median:.2f} [{row.ratio.low:.2f} {row.ratio.high:.2f}]"
    ours, static = (f"{size / 1e6:.1f} MB" for size in row.bytes)
    return f"{row.name:<28} {row.batch:>5} {row.milliseconds:>7.2f} ms  {spread:<20} {ours:>9} {static:>9}"
