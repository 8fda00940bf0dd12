"""What may stand in a slot of the templates in scripts/results: the functions in `SLOTS`.

Each takes the runs in use, then what the slot gives it, and returns text. What one arm has over another is taken seed
by seed; `field` is `score`, `loss`, `paper` or another thing that is known of each run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from statistics import mean, stdev

from condconv.errors import UsageError, shown
from condconv.lab.experiments import tables
from condconv.lab.experiments.comparison import as_markdown, confidence_half_width, thousands
from condconv.lab.experiments.design import Experiment
from scripts.measured import ROOT, Measured
from scripts.measured import trials as read_trials

_ONE_DECIMAL = ("score", "member_score", "paper")
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def over(now: Measured, arm: str, other: str, field: str = "score") -> str:
    """What one arm has over another, in the mean."""
    return _number(mean(now.differences(arm, other, field)), field)


def interval(now: Measured, arm: str, other: str, field: str = "score", sign: str = "") -> str:
    """The 95 % interval of that mean; nothing for fewer than three seeds, whose interval says little."""
    values = now.differences(arm, other, field)
    half = confidence_half_width(values) if len(values) > 2 else None
    if half is None:
        return ""
    return f"{_number(mean(values) - half, field, sign)} to {_number(mean(values) + half, field, sign)}"


def each(now: Measured, arm: str, other: str, field: str = "score") -> str:
    """What one arm has over another on each seed."""
    return _listed(now.differences(arm, other, field), field)


def between(now: Measured, arm: str, other: str, field: str = "score") -> str:
    """The least and the most that one arm has over another on a seed."""
    values = now.differences(arm, other, field)
    return f"{_number(min(values), field)} to {_number(max(values), field)}"


def ahead(now: Measured, arm: str, other: str, field: str = "score") -> str:
    """On how many seeds one arm has more than another."""
    values = now.differences(arm, other, field)
    count = sum(value > 0 for value in values)
    return f"{'all' if count == len(values) else f'{_word(count)} of'} {_word(len(values))} seeds"


def seeds(now: Measured, arm: str, other: str | None = None) -> str:
    """How many seeds an arm has, or two have in common."""
    count = len(now.differences(arm, other or arm, "score"))
    return f"{_word(count)} seed{'s' * (count > 1)}"


def more(now: Measured, arm: str, other: str, field: str = "madds") -> str:
    """How much more of something one arm has than another."""
    ours, theirs = (mean(now.values(label, field).values()) for label in (arm, other))
    return f"{100 * (ours / theirs - 1):.0f} %"


def value(now: Measured, arm: str, field: str = "score") -> str:
    """What an arm has, in the mean over its seeds."""
    return _number(mean(now.values(arm, field).values()), field)


def values(now: Measured, arm: str, field: str = "score") -> str:
    """What an arm has on each seed."""
    return _listed(now.values(arm, field).values(), field)


def spread(now: Measured, arm: str, field: str = "score") -> str:
    """The standard deviation over an arm's seeds."""
    return _number(stdev(now.values(arm, field).values()), field)


def row(now: Measured, arm: str, other: str, called: str | None = None) -> str:
    """Cells of a comparison: network, over, points, interval, seeds, training loss, interval."""
    points = now.differences(arm, other, "score")
    cells = [
        called or arm,
        other,
        f"{mean(points):+.2f}",
        interval(now, arm, other, sign="+"),
        str(len(points)),
    ]
    if all(run["loss"] is not None for label in (arm, other) for run in now.runs[label].values()):
        cells += [f"{mean(now.differences(arm, other, 'loss')):+.3f}", interval(now, arm, other, "loss", "+")]
    return " | ".join(cells + [""] * (7 - len(cells)))


def comparisons(now: Measured, *further: str) -> str:
    """A table of such rows: each arm over its reference, then further ones, as `arm > other`."""
    experiment = _experiment(now)
    pairs = [(arm.label, other.label) for arm in experiment.arms if (other := experiment.reference(arm))]
    pairs = [pair for pair in pairs if pair[0] in now.runs and pair[1] in now.runs]
    pairs += [(pair.partition(" > ")[0], pair.partition(" > ")[2]) for pair in further]
    head = ["network", "over", "points", "95 % interval", "seeds", "training loss", "95 % interval"]
    return as_markdown([head, *(row(now, *pair).split(" | ") for pair in pairs)])


def table(now: Measured) -> str:
    """The experiment's own table, and what a reader of it has to know."""
    experiment = _experiment(now)
    rows = tables.summarise(experiment, now.records)
    known = f"Mean ± standard deviation over the seeds, after the last epoch; differences {tables.compared(rows)}."
    return f"{tables.table(rows, experiment.metric)}\n\n{known} {experiment.note}".strip()


def curves(now: Measured) -> str:
    """Accuracy after at most eight epochs; of several members the first one's, of snapshots that of each in its own."""
    chained = {arm.label for arm in _experiment(now).arms if arm.chained}
    epochs = max(len(record.curve[0]) for record in now.records)
    step = -(-epochs // 8)
    at = range(epochs % step or step, epochs + 1, step)
    lines = [["network", *(f"epoch {epoch}" for epoch in at)]]
    for label in (arm.label for arm in _experiment(now).arms if arm.label in now.runs):
        found = [[*chain(*run["curve"])] if label in chained else run["curve"][0] for run in now.runs[label].values()]
        lines.append([label, *(_number(100 * mean(curve[epoch - 1] for curve in found), "score") for epoch in at)])
    return f"Accuracy on the way, in percent, means over the seeds:\n\n{as_markdown(lines)}"


def command(now: Measured) -> str:
    """The command that makes an experiment."""
    _experiment(now)
    return f"```bash\n{json.loads(now.path.read_text(encoding='utf-8'))['command']}\n```"


def source(now: Measured) -> str:
    """On what an experiment was run, where its numbers are, and the command that makes them."""
    made, machine = command(now), now.records[0].machine
    hours = sum(record.seconds for record in now.records) / 3600
    return (
        f"{len(now.records)} runs, {hours:.1f} hours of one core of a shared x86 machine, torch {machine['torch']}, "
        f"Python {machine['python']}. Source: `{now.path.relative_to(ROOT).as_posix()}`, made by\n\n{made}"
    )


def trials(now: Measured, name: str, *columns: str) -> str:
    """A table of single trials. A column is `header = field` or `header = field:format`, empty if not known."""
    path, content = read_trials(name)
    parts = [re.fullmatch(r"(.+?) = (\w+):?(.*)", column) for column in columns]
    known = {field for run in content["runs"] for field in run}
    for part, column in zip(parts, columns, strict=True):
        if part is None or part[2] not in known:
            raise UsageError(f"`column` must be 'header = field' of {sorted(known)}, got {shown(column)}: correct it")
    asked = [part.groups() for part in parts if part is not None]
    lines = [[format(run[field], form) if field in run else "" for _, field, form in asked] for run in content["runs"]]
    origin = f"Settings: {content['settings']}. Source: `{path.relative_to(ROOT).as_posix()}`."
    return f"{as_markdown([[header for header, _, _ in asked], *lines])}\n\n{origin}"


def _experiment(now: Measured) -> Experiment:
    if now.experiment is None:
        raise UsageError(
            f"`use` must name an experiment here, got {shown(now.path.stem)}: trials have the slot `trials`"
        )
    return now.experiment


def _number(value: float, field: str, sign: str = "") -> str:
    """Write a number as its field is written, without the sign of a zero."""
    if field in ("params", "madds"):
        return thousands(round(value))
    form = ".1f" if field in _ONE_DECIMAL else ".3f"
    text = f"{round(value, 6):{sign}{form}}"  # rounded twice, since 100 * 0.6354 is 63.539999999999999
    return text if float(text) else text.replace("-", "")


def _listed(numbers: Iterable[float], field: str) -> str:
    texts = [_number(number, field) for number in numbers]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _word(number: int) -> str:
    return WORDS[number] if number < len(WORDS) else str(number)


SLOTS: Mapping[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        *(over, interval, each, between, ahead, seeds, more, value, values, spread),
        *(row, comparisons, table, curves, command, source, trials),
    )
}
"""By the name that a template calls them by."""
