"""Measure case by case: check, time in turn, compare."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from condconv.errors import TrainingError
from condconv.lab.bench import targets
from condconv.lab.bench.cases import Case, LayerCase, Trio
from condconv.lab.bench.contender import LAYOUTS, Conditions, Contender
from condconv.lab.bench.parity import check_parity
from condconv.lab.bench.timing import Spread, peak_bytes, ratio, time_by_turns
from condconv.lab.data.workers import shortage


@dataclass(frozen=True)
class Task:
    """One row to measure.

    Attributes:
        case: Layer or network.
        batch: Number of examples.
        conditions: How it is run.
    """

    case: Case
    batch: int
    conditions: Conditions


@dataclass(frozen=True)
class Row:
    """What was measured; the fields by contender have the keys "static", "ours" and, where timm has it, "timm".

    Attributes:
        kind: "layer" or "network".
        name: Of the case.
        batch: Number of examples.
        mode: As in `Conditions`, and so the next three.
        dtype: Its name.
        device: Where.
        compiled: Whether by `torch.compile`.
        bound: Multiply-adds with experts over those without; (HW + E) / HW for a layer.
        expert_bytes: Of the experts, in fp32.
        parity: The worst difference from the reference, in words.
        refused: Why it was not timed, or `None`.
        layout: The faster one, by contender.
        milliseconds: Median time of a call in that layout, by contender.
        ratio: Time over the static twin's, by contender.
        peak_bytes: As `condconv.lab.bench.timing.peak_bytes`, by contender.
        target: The most the ratio may be, or `None`.
        verdict: "pass", "miss" or `None`.
        memory_target: The most bytes above the static twin's, or `None`.
        memory_verdict: "pass", "miss" or `None`.
    """

    kind: str
    name: str
    batch: int
    mode: str
    dtype: str
    device: str
    compiled: bool
    bound: float
    expert_bytes: int
    parity: str
    refused: str | None = None
    layout: dict[str, str] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, Spread] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    target: float | None = None
    verdict: str | None = None
    memory_target: int | None = None
    memory_verdict: str | None = None


def measure_task(task: Task, repetitions: int) -> Row:
    """Measure one task, unless it fails the comparison with the reference; the row then says so.

    Args:
        task: What to measure.
        repetitions: Measurements of each contender in each layout.

    Returns:
        The row; without times where `refused` says why.

    Raises:
        MissingExtraError: The network is based on timm's, which is not installed.
    """
    case, conditions = task.case, task.conditions
    torch.manual_seed(0)
    trio = case.make(task.batch)
    worst = check_parity(case, trio, conditions)
    row = Row(
        kind="layer" if isinstance(case, LayerCase) else "network",
        name=case.name,
        batch=task.batch,
        mode=conditions.mode,
        dtype=conditions.dtype,
        device=conditions.device,
        compiled=conditions.compiled,
        bound=case.bound,
        expert_bytes=case.expert_bytes,
        parity=str(worst),
        refused=None if worst.holds else str(worst),
        target=targets.time_target(case, task.batch, conditions),
        memory_target=targets.memory_target(case, conditions),
    )
    return row if row.refused is not None else _time(row, trio, conditions, repetitions)


def _time(row: Row, trio: Trio, conditions: Conditions, repetitions: int) -> Row:
    torch.compiler.reset()  # what was compiled for the check, perhaps for another batch
    modules = {"static": trio.static, "ours": trio.ours, "timm": trio.timm}
    contenders = {
        (name, layout): Contender(module, trio.inputs[:1] if name == "static" else trio.inputs, conditions, layout)
        for name, module in modules.items()
        if module is not None
        for layout in LAYOUTS
    }
    calls = {" ".join(key): contender for key, contender in contenders.items()}
    times = time_by_turns(calls, repetitions, cuda=conditions.device.startswith("cuda"))
    for name in dict.fromkeys(name for name, _ in contenders):
        medians = {layout: statistics.median(times[f"{name} {layout}"]) for layout in LAYOUTS}
        layout = min(medians, key=lambda each: medians[each])
        row.layout[name] = layout
        row.milliseconds[name] = 1e3 * medians[layout]
        row.ratio[name] = ratio(times[f"{name} {layout}"], times[f"static {row.layout['static']}"])
        row.peak_bytes[name] = peak_bytes(contenders[name, layout])
    added = row.peak_bytes["ours"] - row.peak_bytes["static"]
    return dataclasses.replace(
        row,
        verdict=targets.verdict(row.ratio["ours"].median, row.target),
        memory_verdict=targets.verdict(added, row.memory_target),
    )


@contextmanager
def memory_explained() -> Iterator[None]:
    """Say what to do about too little memory, in place of torch's error.

    Raises:
        TrainingError: There is too little memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if shortage(error) is None:
            raise
        raise TrainingError("too little memory for this row: free some, or give a smaller --batch") from error
