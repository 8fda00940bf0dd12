"""What the files in benchmarks/results hold of trainings, by arm and seed, and what one arm has over another.

A file is the `records.json` of an experiment, in benchmarks/results/experiments, or a list of single trials, in
benchmarks/results. Both are read into the same form, so that a sentence may be about either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from condconv.errors import UsageError, shown
from condconv.lab.experiments.design import Experiment
from condconv.lab.experiments.runs import RunRecord
from condconv.lab.experiments.tables import last_loss, read

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """The runs of one file.

    Attributes:
        path: The file.
        runs: By label of the arm and by seed: what was measured of each by name, `score` in percent and `loss`, the
            last epoch's on the training images, among it.
        experiment: What was compared; `None` for single trials.
        records: Of the experiment.
    """

    path: Path
    runs: Mapping[str, Mapping[int, Run]]
    experiment: Experiment | None = None
    records: tuple[RunRecord, ...] = ()

    def values(self, arm: str, field: str) -> dict[int, float]:
        """Return a value of each run of an arm, by seed.

        Raises:
            UsageError: There is no such arm, or the value of a run is not known.
        """
        if arm not in self.runs:
            raise UsageError(f"`arm` must be one of {sorted(self.runs)}, got {shown(arm)}: {self.path.stem} has these")
        found = {seed: run.get(field) for seed, run in sorted(self.runs[arm].items())}
        if None in found.values():
            raise UsageError(f"`field` must be known of {shown(arm)}, got {shown(field)}: {self.path.stem} lacks it")
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def differences(self, arm: str, other: str, field: str) -> list[float]:
        """Return what an arm has over another on each seed that both have.

        Raises:
            UsageError: An arm or its value is not there, or they share no seed.
        """
        ours, theirs = self.values(arm, field), self.values(other, field)
        found = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if not found:
            raise UsageError(f"`arm` must share seeds with {shown(other)}, got {shown(arm)}: compare it with another")
        return found


def measured(name: str, keys: Sequence[str] = ()) -> Measured:
    """Read a file.

    Args:
        name: Of an experiment or of a file of trials, without `.json`.
        keys: What trials are called by, besides what they say that they are.

    Raises:
        UsageError: There is no such file, or two trials of one seed are called alike.
    """
    path = RESULTS / "experiments" / f"{name}.json"
    if not path.is_file():
        return Measured(*_trials(name, keys))
    experiment, records = read(path)
    paper = {arm.label: arm.paper for arm in experiment.arms}
    runs: dict[str, dict[int, Run]] = {}
    for record in records:
        ends = {"score": 100 * record.score, "loss": last_loss(record) if record.loss_curve else None}
        facts = {"paper": paper[record.label], "member_score": 100 * mean(record.member_scores)}
        runs.setdefault(record.label, {})[record.seed] = asdict(record) | ends | facts
    return Measured(path, runs, experiment, records)


def trials(name: str) -> tuple[Path, dict[str, Any]]:
    """Return a file of single trials, and what it holds.

    Raises:
        UsageError: There is no such file.
    """
    path = RESULTS / f"{name}.json"
    lines = path.with_suffix(".jsonl")
    if lines.is_file():  # a line about the runs, then one per run
        about, *runs = (json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines())
        return lines, about | {"runs": [_with_ends(run) for run in runs]}
    if not path.is_file():
        known = sorted(each.stem for each in (RESULTS / "experiments").iterdir())
        raise UsageError(f"`experiment` must be one of {known} or a file of trials, got {shown(name)}: add its records")
    content = json.loads(path.read_text(encoding="utf-8"))
    return path, content | {"runs": [_with_ends(run) for run in content["runs"]]}


def _trials(name: str, keys: Sequence[str]) -> tuple[Path, dict[str, dict[int, Run]]]:
    path, content = trials(name)
    runs: dict[str, dict[int, Run]] = {}
    for run in content["runs"]:
        label, seed = ", ".join(str(run[key]) for key in ("what", *keys)), run.get("seed", 0)
        if seed in runs.setdefault(label, {}):
            raise UsageError(f"`keys` must tell all trials apart, got two of {shown(label)}: name more of {list(run)}")
        runs[label][seed] = run
    return path, runs


def _with_ends(run: Run) -> Run:
    """Add what a trial ended with, and the median of its routers and layers, with the least and the largest."""
    ends: dict[str, Any] = {}
    if "top1" in run:
        ends = {"score": 100 * run["top1"][-1], "loss": run["train_loss"] and run["train_loss"][-1]}
    for field, scale, form in (("routing_spread", 1, ".3f"), ("kernel_spread", 100, ".1f")):
        if field in run:
            middle, least, most = (scale * each(run[field]) for each in (median, min, max))
            ends[field] = f"{middle:{form}} [{least:{form}} {most:{form}}]"
            ends |= {f"{field}_median": middle, f"{field}_min": least, f"{field}_max": most}
    return {**run, **ends}
