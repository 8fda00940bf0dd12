"""Write docs/results.md and its pictures from what `condconv experiment` left.

`python scripts/make_results.py` reads every benchmarks/results/experiments/*.json, which are the `records.json` of
experiments; `--check` says whether the page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from condconv.experiments.design import Experiment
from condconv.experiments.runs import RunRecord
from condconv.experiments.tables import Row, plot, read, summarise, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import write_or_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"
TEXTS = ROOT / "scripts" / "results"
SOURCES = ROOT / "benchmarks" / "results" / "experiments"
ASSETS = ROOT / "docs" / "assets"


def sources() -> list[Path]:
    """Return the files that the page is made of, in its order."""
    order = json.loads((SOURCES / "order.json").read_text(encoding="utf-8"))
    return [SOURCES / f"{name}.json" for name in order]


def spent(records: Sequence[RunRecord]) -> str:
    """Say on what machine the runs were made, and in how much time."""
    machine = records[0].machine
    hours = sum(record.seconds for record in records) / 3600
    return (
        f"{len(records)} runs, {hours:.1f} hours of one core of a shared x86 machine, torch {machine['torch']}, "
        f"Python {machine['python']}."
    )


def curves(experiment: Experiment, records: Sequence[RunRecord]) -> str:
    """Return the score after each epoch as a Markdown table, the mean over seeds of the first member."""
    epochs = max(len(record.curve[0]) for record in records)
    lines = [["network", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))], ["---", *["---:"] * epochs]]
    for arm in experiment.arms:
        found = [record.curve[0] for record in records if record.label == arm.label]
        if found:
            means = [100 * sum(curve[epoch] for curve in found) / len(found) for epoch in range(len(found[0]))]
            lines.append([arm.label, *(f"{mean:.1f}" for mean in means)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(source: Path) -> str:
    """Return the section of one file: its own text, the table, the picture, and where all of it is from."""
    experiment, records = read(source)
    numbers = json.loads(source.read_text(encoding="utf-8"))
    rows: Sequence[Row] = summarise(experiment, records)
    text = (TEXTS / f"{source.stem}.md").read_text(encoding="utf-8").strip()
    return "\n\n".join(
        (
            text,
            f"![{experiment.title}](assets/results-{source.stem}.png)",
            table(rows, experiment.metric),
            "Accuracy after each epoch, in percent, means over the seeds:",
            curves(experiment, records),
            f"{spent(records)} Source: `{source.relative_to(ROOT).as_posix()}`, made by",
            f"```bash\n{numbers['command']}\n```",
        )
    )


def page() -> str:
    """Return the page."""
    intro = (TEXTS / "intro.md").read_text(encoding="utf-8").strip()
    return "\n\n".join((intro, *(section(source) for source in sources()))) + "\n"


def draw_all() -> None:
    """Draw the picture of each file."""
    for source in sources():
        experiment, records = read(source)
        plot(experiment, summarise(experiment, records), ASSETS / f"results-{source.stem}.png")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page, draw_all))
