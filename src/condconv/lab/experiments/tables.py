"""The results of an experiment: a table as Markdown and CSV, the numbers as JSON, and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from condconv.errors import UsageError, command_line, first_line, shown_name
from condconv.files.atomic import write_own
from condconv.files.paths import make_directory, read_text
from condconv.files.schema import read_record
from condconv.lab.experiments.comparison import as_markdown, spread, thousands
from condconv.lab.experiments.design import Arm, Experiment
from condconv.lab.experiments.plots import new_figure, save_figure
from condconv.lab.experiments.runner import Outcome
from condconv.lab.experiments.runs import RESULTS, RunRecord
from condconv.lab.experiments.verdicts import Result, Results
from condconv.lab.saved.metrics import as_csv


@dataclass(frozen=True)
class Row:
    """One arm over its seeds.

    Attributes:
        label: Of the arm.
        params: Parameters, all members.
        madds: Multiply-adds for one image, all members.
        score: Mean score in percent.
        spread: Standard deviation over the seeds; `None` for one seed.
        seeds: How many.
        against: Label of the arm it is compared with; `None` for a reference.
        difference: Mean of the differences to that arm, seed by seed, in points; `None` for a reference, and if no
            seed is finished in both.
        difference_spread: Standard deviation of these; `None` for one seed.
        pairs: How many seeds are finished in both.
        loss: Mean training loss of the last epoch; `None` if it was not stored.
        minutes: Median wall time of a run's training.
        paper: Score in the paper, on its data; `None` if it has none.
        paper_difference: The difference in the paper, or `None`.
    """

    label: str
    params: int
    madds: int
    score: float
    spread: float | None
    seeds: int
    against: str | None
    difference: float | None
    difference_spread: float | None
    pairs: int
    loss: float | None
    minutes: float
    paper: float | None
    paper_difference: float | None


def differences(
    records: Sequence[RunRecord],
    arm: Arm,
    other: Arm | None,
    measure: Callable[[RunRecord], float] = lambda record: 100 * record.score,
) -> list[float]:
    """Return the differences of an arm to another, in points, for each seed that both have.

    Args:
        records: Of all arms.
        arm: One of them.
        other: Another; `None` for no differences.
        measure: What is compared.
    """
    found: dict[str, dict[int, float]] = {}
    for record in records:
        found.setdefault(record.label, {})[record.seed] = measure(record)
    ours, theirs = found.get(arm.label, {}), {} if other is None else found.get(other.label, {})
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def summarise(experiment: Experiment, records: Sequence[RunRecord]) -> list[Row]:
    """Return a row for each arm with a finished run, in the order of the arms."""
    by_label: dict[str, dict[int, RunRecord]] = {}
    for record in records:
        by_label.setdefault(record.label, {})[record.seed] = record
    rows = []
    for arm in experiment.arms:
        found = by_label.get(arm.label)
        if not found:
            continue
        reference = experiment.reference(arm)
        scores = [100 * record.score for record in found.values()]
        points = differences(records, arm, reference)
        printed = None if reference is None else reference.paper
        one = next(iter(found.values()))
        rows.append(
            Row(
                label=arm.label,
                params=one.params,
                madds=one.madds,
                score=mean(scores),
                spread=spread(scores),
                seeds=len(scores),
                against=None if reference is None else reference.label,
                difference=mean(points) if points else None,
                difference_spread=spread(points),
                pairs=len(points),
                loss=mean(map(last_loss, found.values())) if all(each.loss_curve for each in found.values()) else None,
                minutes=median(record.seconds for record in found.values()) / 60,
                paper=arm.paper,
                paper_difference=None if printed is None or arm.paper is None else arm.paper - printed,
            )
        )
    return rows


def last_loss(record: RunRecord) -> float:
    """Return the mean training loss of the last epoch, over the members."""
    return mean(curve[-1] for curve in record.loss_curve)


def table(rows: Sequence[Row], metric: str) -> str:
    """Return the rows as a Markdown table, scores under the name of the metric."""
    header = ["network", "params", "MADDs", metric, "seeds", "difference", "training loss"]
    header += ["paper", "paper: difference", "minutes"]
    cells = [
        [
            row.label,
            thousands(row.params),
            thousands(row.madds),
            _plus_minus(row.score, row.spread, ".2f"),
            str(row.seeds),
            _plus_minus(row.difference, row.difference_spread, "+.2f") + _fewer(row),
            "" if row.loss is None else f"{row.loss:.3f}",
            "" if row.paper is None else f"{row.paper:.1f}",
            "" if row.paper_difference is None else f"{row.paper_difference:+.1f}",
            f"{row.minutes:.1f}",
        ]
        for row in rows
    ]
    return as_markdown([header, *cells])


def _plus_minus(value: float | None, spread: float | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form) + ("" if spread is None else f" ± {spread:.2f}")


def _fewer(row: Row) -> str:
    """Return the number of seeds of a difference, if it is not that of the row."""
    return f" ({row.pairs} of {row.seeds} seeds)" if row.pairs not in (0, row.seeds) else ""


def compared(rows: Sequence[Row]) -> str:
    """Return what the differences of a table are relative to."""
    references = {row.against for row in rows if row.against is not None}
    return f"to {references.pop()!r}" if len(references) == 1 else "to the static network of each"


def write_tables(
    experiment: Experiment, outcome: Outcome, conditions: str, out: Path, command: Sequence[str] = ()
) -> tuple[str, tuple[Path, ...]]:
    """Write table, numbers and plot of the finished runs.

    Args:
        experiment: The experiment.
        outcome: Its runs.
        conditions: Data, epochs and other conditions of the runs, in one sentence.
        out: Directory; made if it is not there.
        command: The words of the command line; stored with the numbers.

    Returns:
        The table as Markdown, and the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: A file cannot be written.
    """
    make_directory(out)
    rows = summarise(experiment, outcome.records)
    markdown = table(rows, experiment.metric)
    failed = "".join(f"\nFailed: {name}, {reason}\n" for name, reason in outcome.failures.items())
    verdicts = experiment.verdicts(_results(outcome.records))
    notes = " ".join(each for each in (*verdicts, conditions, experiment.note) if each)
    text = (
        f"# {experiment.title}\n\n{markdown}\n{failed}\n{notes} Mean ± standard deviation over "
        f"seeds, after the last epoch; differences {compared(rows)}, seed by seed. Paper: {experiment.source}, on its "
        "own data.\n"
    )
    numbers = {
        "command": command_line(command),
        "experiment": asdict(experiment),
        "conditions": conditions,
        "records": [asdict(each) for each in outcome.records],
    }
    *paths, picture = (out / name for name in RESULTS)
    for path, content in zip(paths, (text, as_csv(rows, Row), json.dumps(numbers, indent=1) + "\n"), strict=True):
        write_own(path, content)
    if rows:  # none if every run failed
        paths.append(picture)
        plot(experiment, rows, picture)
    return markdown, tuple(paths)


def _results(records: Sequence[RunRecord]) -> Results:
    """Return what the rule of an experiment judges."""
    results: dict[str, dict[int, Result]] = {}
    for each in records:
        results.setdefault(each.label, {})[each.seed] = Result(100 * each.score, each.params, each.madds)
    return results


def read(path: Path) -> tuple[Experiment, tuple[RunRecord, ...]]:
    """Return the experiment and the runs that `write_tables` put into a `records.json`.

    Raises:
        UsageError: The file cannot be read, or is not one of this version.
    """
    try:
        numbers = json.loads(read_text(path))
        experiment = read_record(Experiment, numbers["experiment"])
        records = tuple(read_record(RunRecord, each) for each in numbers["records"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"`path` must be a records.json of this version, got {shown_name(path)} ({first_line(error)}): run "
            "the experiment's command again, which keeps what is trained"
        ) from error
    return experiment, records


def plot(experiment: Experiment, rows: Sequence[Row], path: Path) -> None:
    """Draw the score by multiply-adds if the arms are points of curves, otherwise the difference of each arm.

    Args:
        experiment: The experiment.
        rows: As `summarise` returns them.
        path: PNG file to write.
    """
    curves = {arm.label: arm.curve for arm in experiment.arms if arm.curve is not None}
    height = 4.2 if curves else 1.6 + 0.42 * len(rows)
    figure, axes = new_figure(1, (7.5, height))
    if curves:
        _curves(axes, rows, curves, experiment.source)
        axes.set_ylabel(experiment.metric)
    else:
        _differences(axes, rows)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(frameon=False)
    else:  # outside the axes, in which points may be anywhere
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set_title(experiment.title, fontsize=11)
    save_figure(figure, path)


def _curves(axes: Any, rows: Sequence[Row], curves: dict[str, str], source: str) -> None:
    for name in dict.fromkeys(curves.values()):
        points = sorted((row for row in rows if curves.get(row.label) == name), key=lambda row: row.madds)
        if points:
            x, y = [row.madds / 1e6 for row in points], [row.score for row in points]
            line = axes.errorbar(x, y, [row.spread or 0.0 for row in points], label=name, marker="o", capsize=3)
            printed = [(row.madds / 1e6, row.paper) for row in points if row.paper is not None]
            if printed:  # in the same colour
                axes.plot(*zip(*printed, strict=True), "--D", mfc="none", alpha=0.5, color=line[0].get_color())
    if any(row.paper is not None for row in rows):
        axes.plot([], [], "--D", mfc="none", alpha=0.5, color="grey", label=f"{source}, on its data")
    axes.set(xscale="log", xlabel="multiply-adds (millions)")
    costs = [row.madds for row in rows]
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}" if max(costs) < 10 * min(costs) else "")  # otherwise they overlap


def _differences(axes: Any, rows: Sequence[Row]) -> None:
    rows = [row for row in rows if row.against is not None]
    places = {row.label: place for place, row in enumerate(rows)}
    measured = [row for row in rows if row.difference is not None]  # not if no seed is finished in both
    at = [places[row.label] for row in measured]
    spreads = [row.difference_spread or 0.0 for row in measured]
    axes.errorbar([row.difference for row in measured], at, xerr=spreads, fmt="o", capsize=3, label="measured here")
    printed = [row for row in rows if row.paper_difference is not None]
    if printed:
        theirs = [row.paper_difference for row in printed]
        axes.plot(theirs, [places[row.label] for row in printed], "D", mfc="none", label="the paper, on its data")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks([*places.values()], [*places])
    axes.invert_yaxis()
    references = {row.against for row in rows}
    axes.set(xlabel=f"difference to {references.pop() if len(references) == 1 else 'the static network'} (points)")
