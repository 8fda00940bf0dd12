"""Write docs/performance.md, docs/timings.md and their pictures from the files that `condconv bench` wrote.

The text of the pages is in scripts/templates.

`python scripts/make_performance.py` reads every benchmarks/results/performance-*.json, `--check` says whether the pages
are up to date. Measure again with the command that a file holds, then run this.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from condconv.lab.bench.call import CallCost
from condconv.lab.bench.report import format_ratio, row_from_record, verdicts_of
from condconv.lab.bench.run import Row
from condconv.ops.implementations import NATIVE, TABLE
from condconv.ops.rules import MEASURED, RULES, ImplRule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import filled, write_or_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
TIMINGS = PAGE.with_name("timings.md")
SOURCES = ROOT / "benchmarks" / "results"
# Of the files of one dtype a later one stands for an earlier one's rows of the same case.
SELECTION = tuple(SOURCES / f"selection-cpu{part}.json" for part in ("", "-pixel", "-few"))
SELECTION_BF16 = tuple(SOURCES / f"selection-cpu{part}-bf16.json" for part in ("", "-pixel", "-few"))

NOTES = {
    "cpu-avx2": "In 41 repetitions of `tf_efficientnet_cc_b0_8e` at batch 1 alone, on the same machine and day, by "
    "turns, the network took 1.23 with the compiled kernels, 1.19 with torch's own product and convolution for the "
    "pointwise layers, and 1.23 with timm's: the 1.11 below is chance. To fetch the next experts while the present "
    "ones are multiplied was tried, and gained nothing.\n",
    "cpu-avx512": "Measured before a call was made cheaper, which shows in the shortest rows, and before pointwise "
    "layers and gradients were made faster for all instruction sets.\n",
}
"""What has to be said of a file, by its name."""


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of rows that were timed."""
    header = ("case", "batch", "static", "ours / static", "timm / static", "bound", "target", "memory, ours / static")
    lines = [header, ("---", *("---:",) * (len(header) - 1))]
    for row in rows:
        memory = " / ".join(f"{row.peak_bytes[name] / 1e6:.1f}" for name in ("ours", "static"))
        verdict = f", {row.memory_verdict}" if row.memory_verdict else ""
        target = "" if row.target is None else f"{row.target:.2f} {_strong(row.verdict)}"
        lines.append(
            (
                *(_name(row), str(row.batch), f"{row.milliseconds['static']:.2f} ms", format_ratio(row.ratio["ours"])),
                *(format_ratio(row.ratio.get("timm")), f"{row.bound:.2f}", target, f"{memory} MB{verdict}"),
            )
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def not_timed(rows: Sequence[Row]) -> str:
    """Return the list of rows that were not timed, with the reasons."""
    refused = [row for row in rows if row.refused is not None]
    return "".join(f"- **{_name(row)}, batch {row.batch}**: not timed; {row.refused}.\n" for row in refused)


def summary() -> str:
    """Return what the files say in short: whole networks, and where timm's layer is ahead."""
    header = ("machine", "network", "batch", "condconv", "timm's layer", "target")
    cells = [header, ("---", "---", *("---:",) * 4)]
    ahead = []
    every: list[Row] = []
    for source in sources():
        name = source.stem.removeprefix("performance-")
        record = read(source)
        rows = [row for row in rows_of(record) if row.refused is None]
        verdicts = verdicts_of(rows, _call(record))
        every += rows
        beside = [row for row in rows if "timm" in row.ratio]
        behind = [row for row in beside if row.ratio["timm"].median < row.ratio["ours"].median]
        for row in rows:
            if row.kind == "network":
                ours, timm = (f"{row.ratio[each].median:.2f}" if each in row.ratio else "" for each in ("ours", "timm"))
                target = "" if row.target is None else f"{row.target:.2f} {_strong(row.verdict)}"
                cells.append((name, _name(row), str(row.batch), ours, timm, target))
        listed = "; ".join(
            f"{_name(row)} at batch {row.batch} ({row.ratio['ours'].median:.2f}, timm {row.ratio['timm'].median:.2f})"
            for row in behind
        )
        but = f"; timm's is in {len(behind)}: {listed}" if behind else ""
        met = f"{verdicts.count('pass')} of {len(verdicts)} targets are met"
        ahead.append(f"- **{name}**: {met}; ours is ahead in {len(beside) - len(behind)} of {len(beside)} rows{but}.")
    lines = [f"| {' | '.join(each)} |" for each in cells]
    lacking = [
        what
        for what, there in (
            ("on a GPU", any(row.device != "cpu" for row in every)),
            ("of compiled networks", any(row.compiled for row in every)),
            ("of networks in bf16", any(row.dtype == "bf16" for row in every)),
            ("with several threads", any(read(source)["machine"]["threads"] > 1 for source in sources())),
        )
        if not there
    ]
    return "\n".join((*lines, "", *ahead, *(["", f"Not timed yet: {', '.join(lacking)}."] if lacking else [])))


def section(source: Path) -> str:
    """Return the section of one file."""
    record = read(source)
    rows = rows_of(record)
    name = source.stem.removeprefix("performance-")
    machine, versions = record["machine"], record["versions"]
    call = _call(record)
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    timm = f", timm {versions['timm']}" if versions["timm"] else ""
    return "\n".join(
        (
            f"## {name}\n",
            f"{where}; {record['kernels']}; torch {versions['torch']}{timm}; {record['repetitions']} repetitions.",
            f"Command: `{record['command']}`. Source: `{source.relative_to(ROOT).as_posix()}`.\n",
            *([NOTES[name]] if name in NOTES else []),
            f"![Time over the static twin's, with quartiles and bounds](assets/{source.stem}.svg)\n",
            table([row for row in rows if row.refused is None]),
            *([] if call is None else [f"Call overhead (a layer too small to take time): {call}.\n"]),
            *filter(None, [not_timed(rows)]),
        )
    )


def rules() -> str:
    """Return the table of "auto", with what each rule's implementation took where it decides."""
    header = ("where", "takes", "fp32", "best of the others", "bf16", "best of the others", "why")
    lines: list[tuple[str, ...]] = [header, ("---",) * len(header)]
    fp32, bf16 = ([read(file) for file in files] for files in (SELECTION, SELECTION_BF16))
    beside = set(TABLE)
    for rule in RULES:
        if rule.takes is NATIVE:
            beside.discard(NATIVE.name)
        taken, cells = [], []
        for dtype, records in (("fp32", fp32), ("bf16", bf16)):
            own, others = _times(rule, records, beside)
            taken += [f"{len(own)} cases in {dtype}"] if own else []
            cells += [_range(own), _range(others)]
        why = ", ".join(taken) if rule.because == MEASURED else rule.because
        if why:
            lines.append((rule.where, f"`{rule.takes.name}`", *cells, why))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rule_sources() -> str:
    """Return the list of what the table of "auto" was measured with."""
    records = [read(file) for file in (*SELECTION, *SELECTION_BF16)]
    return "\n".join(
        f"- {record['num_experts']} experts, {record['threads']} thread, {record['instructions']}, torch "
        f"{record['torch']}, {record['repetitions']} repetitions: `{record['command']}`"
        for record in records
    )


def _times(rule: ImplRule, records: Sequence[Any], beside: set[str]) -> tuple[list[float], list[float]]:
    """Return what a rule's implementation and the best of the others took in each case that the rule decides."""
    case = itemgetter("layer", "batch", "channels_last", "training")
    rows = {case(row): row for record in records for row in record["rows"]}
    governed = [row for row in rows.values() if rule.where in (row["rule"], row["otherwise"])]
    name = rule.takes.name
    own = [row[name]["median"] for row in governed]
    return own, [min(row[other]["median"] for other in beside & row.keys() - {name}) for row in governed]


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} [{min(values):.2f} {max(values):.2f}]"


def page() -> str:
    """Return the page of the summary."""
    return filled("performance.md", {"summary": summary})


def timings() -> str:
    """Return the page of all rows."""
    cases = "\n".join(section(source) for source in sources()).rstrip("\n")
    return filled("timings.md", {"rules": rules, "rule sources": rule_sources, "cases": lambda: cases})


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw each row's ratios with their quartiles, and its bound."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for name, label, colour, shift in (("ours", "condconv", "#3f51b5", -0.15), ("timm", "timm", "#ff7043", 0.15)):
        present = [(place + shift, row.ratio[name]) for place, row in enumerate(rows) if name in row.ratio]
        if present:
            medians = [each.median for _, each in present]
            spread = [[each.median - each.low for _, each in present], [each.high - each.median for _, each in present]]
            places = [place for place, _ in present]
            axes.errorbar(medians, places, xerr=spread, fmt="o", markersize=4, color=colour, label=label)
    axes.plot([row.bound for row in rows], range(len(rows)), "|", markersize=9, color="black", label="bound")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="time over the static twin's", yticks=range(len(rows)))
    ticks = (0.5, 1, 2, 4, 8)
    axes.set_xticks(ticks, [str(each) for each in ticks])
    axes.xaxis.set_minor_formatter("")
    axes.set_yticklabels([f"{_name(row).replace('`', '')}, batch {row.batch}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.legend(loc="upper right")
    # The same bytes at every run, so that the file changes only when the numbers do.
    with mpl.rc_context({"svg.hashsalt": "condconv", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def sources() -> list[Path]:
    """Return the files that the page is made of."""
    return sorted(SOURCES.glob("performance-*.json"))


def read(source: Path) -> Any:
    """Return what a file holds."""
    return json.loads(source.read_text(encoding="utf-8"))


def _call(record: Any) -> CallCost | None:
    return CallCost(**record["call"]) if "call" in record else None


def rows_of(record: Any) -> list[Row]:
    """Return the rows of a file."""
    return [row_from_record(values) for values in record["rows"]]


def _name(row: Row) -> str:
    name = f"`{row.name}`" if row.kind == "network" else row.name
    more = ("training" if row.mode == "training" else "", row.dtype if row.dtype != "fp32" else "")
    return ", ".join(part for part in (name, *more, "compiled" if row.compiled else "") if part)


def _strong(verdict: str | None) -> str:
    return "**miss**" if verdict == "miss" else str(verdict)


def draw_all() -> None:
    """Draw the picture of each file."""
    for source in sources():
        timed = [row for row in rows_of(read(source)) if row.refused is None]
        draw(timed, ROOT / "docs" / "assets" / f"{source.stem}.svg")


if __name__ == "__main__":
    sys.exit(max(write_or_check(PAGE, page, draw_all), write_or_check(TIMINGS, timings)))
