"""Rows as lines of a table, and a whole run as a record for a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import condconv
from condconv.errors import MissingExtraError, require_extra
from condconv.export.formats import FORMATS
from condconv.lab.bench.call import CallCost
from condconv.lab.bench.contender import Conditions
from condconv.lab.bench.run import Row
from condconv.lab.bench.runtimes import RuntimeRow
from condconv.lab.bench.timing import Spread
from condconv.ops.native import library

_WIDTHS = (27, 5, 13, 9, 18, 18, 6, 13, 17, 13)
_HEADER = (
    *("case", "batch", "how", "static ms", "ours / static", "timm / static", "bound"),
    *("target", "memory MB", "target"),
)


def kernels_in_use(conditions: Conditions) -> str:
    """Return which kernels "auto" uses: the compiled ones and their instruction set, or why not."""
    if conditions.device != "cpu":
        return f"torch's operations on {conditions.device}"
    if library.WHY_NOT is not None:
        return f"native kernels not built: {library.WHY_NOT}"
    if conditions.dtype != "fp32":
        where = f"where it pays: they compute in fp32, not in {conditions.dtype}"
        return f"native: {library.instruction_set()}, {where}"
    return f"native: {library.instruction_set()}"


def header() -> str:
    """Return the table's first line."""
    return _line(_HEADER)


def line(row: Row) -> str:
    """Return a row as one line.

    Memory is that of the conditional twin and, after a slash, of the static one, parameters included.
    """
    if row.refused is not None:
        return _line((row.name, str(row.batch), _how(row))) + f"  not timed: {row.refused}"
    memory = " / ".join(f"{row.peak_bytes[name] / 1e6:.1f}" for name in ("ours", "static"))
    limit = "-" if row.memory_target is None else f"+{row.memory_target / 1e6:.0f} {row.memory_verdict}"
    cells = (
        *(row.name, str(row.batch), _how(row), f"{row.milliseconds['static']:.3f}"),
        *(format_ratio(row.ratio["ours"]), format_ratio(row.ratio.get("timm")), f"{row.bound:.2f}"),
        *("-" if row.target is None else f"{row.target:.2f} {row.verdict}", memory, limit),
    )
    return _line(cells)


def format_ratio(ratio: Spread | None) -> str:
    """Return a ratio with its quartiles, or "-"."""
    return "-" if ratio is None else f"{ratio.median:.2f} [{ratio.low:.2f} {ratio.high:.2f}]"


def verdicts_of(rows: Sequence[Row], call: CallCost | None) -> list[str]:
    """Return "pass" or "miss" for each target; `call` is `None` in files older than its measurement."""
    found = [each for row in rows for each in (row.verdict, row.memory_verdict)]
    return [each for each in (*found, None if call is None else call.verdict) if each is not None]


def summary(rows: Sequence[Row], call: CallCost) -> str:
    """Return how many of the targets are met."""
    verdicts = verdicts_of(rows, call)
    refused = sum(row.refused is not None for row in rows)
    text = f"targets: {verdicts.count('pass')} pass, {verdicts.count('miss')} miss"
    return text + (f"; {refused} not timed: they differ from the reference" if refused else "")


def record(
    rows: Sequence[Row], call: CallCost, command: str, conditions: Conditions, repetitions: int, keeps_memory: bool
) -> dict[str, Any]:
    """Return what was measured, where and how, as JSON types; `conditions` may be those of any row."""
    return {
        "command": command,
        **_where(conditions.device),
        "kernels": kernels_in_use(conditions),
        "keeps_freed_memory": keeps_memory,
        "repetitions": repetitions,
        "call": asdict(call),
        "rows": [asdict(row) for row in rows],
    }


def runtime_record(rows: Sequence[RuntimeRow], command: str, repetitions: int) -> dict[str, Any]:
    """Return what was measured in another runtime, as JSON types."""
    packages = dict.fromkeys(package for row in rows for package in FORMATS[row.runtime].PACKAGES)
    where = _where("cpu")
    where["versions"] |= {package: version(package) for package in packages}
    return {"command": command, **where, "repetitions": repetitions, "rows": [asdict(row) for row in rows]}


def _where(device: str) -> dict[str, Any]:
    """Return the machine, and the versions of what ran on it."""
    return {
        "machine": {
            "processor": _processor(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": None if device == "cpu" else torch.cuda.get_device_name(device),
        },
        "versions": {
            "condconv": condconv.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": _timm_version(),
        },
    }


def row_from_record(values: dict[str, Any]) -> Row:
    """Return the row that a record holds."""
    ratios = {name: Spread(**each) for name, each in values["ratio"].items()}
    return Row(**{**values, "ratio": ratios})


def _how(row: Row) -> str:
    return f"{'train' if row.mode == 'training' else 'infer'} {row.dtype}{' c' if row.compiled else ''}"


def _line(cells: Sequence[str]) -> str:
    first, *rest = (
        cell.ljust(width) if column in (0, 2) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=False))
    )
    return "  ".join((first, *rest)).rstrip()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"


def _timm_version() -> str | None:
    try:
        return str(require_extra("timm", "models").__version__)
    except MissingExtraError:
        return None
