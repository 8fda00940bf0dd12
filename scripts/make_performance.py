"""Write docs/performance.md and its pictures from the files that `condconv bench` wrote.

`python scripts/make_performance.py` reads every benchmarks/results/performance-*.json, `--check` says whether the page
is up to date. Measure again with the command that a file holds, then run this.
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
from condconv.ops.selection import MEASURED, RULES, WHY_NOT

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import write_or_check

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
SOURCES = ROOT / "benchmarks" / "results"
# Of the files of one dtype a later one stands for an earlier one's rows of the same case.
SELECTION = tuple(SOURCES / f"selection-cpu{part}.json" for part in ("", "-pixel", "-few"))
SELECTION_BF16 = tuple(SOURCES / f"selection-cpu{part}-bf16.json" for part in ("", "-pixel", "-few"))

INTRO = """\
# Performance

What experts cost, compared with the same layer or network without them. `scripts/make_performance.py` writes this page
from measurements of `condconv bench`, and a test keeps it up to date. On your machine:

```bash
condconv bench --quick            # under five minutes on two cores
condconv bench --layers "1x1 672" --batch 8 --mode training
condconv bench --networks mobilenet --dtype bf16 --compile -o mine.json
```
"""

METHOD = """\
## How it is measured

- **First the result.** Outputs, and in training all gradients, are compared with the reference implementation in fp64.
  A row that differs by more than a few times the reference's own rounding is not timed.
- **Then in turn.** The static twin, ours and timm's `CondConv2d`, each contiguous and channels_last, run one after the
  other in one process, and again for each repetition; the better layout of each counts. Short calls are repeated to
  fill 20 ms, so the weights of a single layer stay in the caches. With glibc, freed memory is kept for the next call.
  Otherwise large outputs need new pages, which can cost more than a layer: both would be slower by chance, and their
  ratio would mean nothing.
- **Ratios** are medians over the repetitions of ratios within a repetition, with quartiles in brackets.
- **A training step** is a forward and a backward pass with all gradients, for a network also a step of plain SGD,
  without a loss function. In bf16 the parameters of a training step stay fp32, under autocast.
- **The bound** is (HW + E) / HW for HW output pixels and E experts: multiply-adds with experts over those without. In a
  network it is over all layers. It does not include memory traffic.
- **Memory** is that of the parameters, and the peak of a call without its input. On the CPU it is what torch's profiler
  records of its allocator, without a few megabytes that kernels allocate elsewhere.
- A layer is given its routing weights; a network computes them.
- **Call overhead**: the time of a layer too small to take time (8 experts, 8 channels in and out, 4 x 4 pixels, batch
  1) minus that of torch's. It is what checking, choosing and calling cost in Python.

Targets, as a multiple of the static twin's time: a listed layer in inference on the CPU 1.5 at batch 1 and 1.25 times
the bound from batch 8 on; a network in inference on the CPU 1.15; a training step of EfficientNet-B0 with 8 experts,
batch 16, on the CPU 1.2. In training a network may take more memory than the static one by its experts, their
gradients and a tenth.
A call may take 15 µs more than torch's.
"""

MISSES = """\
### What misses its target, and why

What is known to bound them:

- At batch 1 a layer reads all its experts for one example, E times what its twin reads, and no implementation is much
  faster than another. [Quantized experts](quantizing.md) are a half or a quarter of the bytes; their page has
  the times.
- Experts that outgrow the caches come from memory, at any batch; the 75 MB of `3x3 512->512` do.
- A depthwise layer does a few multiply-adds for each number it reads or writes: mixing shows, and so does the call
  overhead in Python.
- The rest is due to the kernels: torch's are faster for some shapes, most of all 3 x 3 with many channels.
  timm's layer, which calls torch's kernels with one group per example, shows how little of that reaches such a call.
"""

GPU = """\
## On a GPU

`impl="triton"` computes two-dimensional layers on CUDA GPUs in fp32, bf16 and fp16: kernels are mixed where they are
used when an example has at most 128 output pixels, else for a few examples at a time, and gradients of single kernels
are never stored. It is tested against the reference under Triton's interpreter, and its kernels compile for compute
capabilities 8.0 and 9.0. It has not been timed, so "auto" does not take it:
`condconv bench --device cuda --impl triton` times it.
"""


AUTO = """\
## How "auto" chooses

The first line that applies decides. Times are medians over the cases that the line decides, with the smallest and the
largest. The lines after `native` also decide if no compiled kernel can run, so `native` is not among their
alternatives. Layers of one pixel were measured again later, on another machine, after they became a product; so were
those with few channels, for which calling a convolution per example takes longer than computing it.
"""


BF16 = """\
In bf16 torch's products use the CPU's instructions for it, where it has them, and ours compute in fp32. The ratios are
to the static layer in bf16.
"""


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


def misses(rows: Sequence[Row]) -> str:
    """Return the list of misses and of what was not timed."""
    lines = []
    for row in rows:
        title = f"**{_name(row)}, batch {row.batch}**"
        experts = f"experts of {row.expert_bytes / 1e6:.3g} MB"
        if row.refused is not None:
            lines.append(f"- {title}: not timed; {row.refused}.")
        if row.verdict == "miss":
            lines.append(
                f"- {title}: {row.ratio['ours'].median:.2f}, target {row.target:.2f}, bound {row.bound:.2f}; {experts}."
            )
        if row.memory_verdict == "miss" and row.memory_target is not None:
            added = (row.peak_bytes["ours"] - row.peak_bytes["static"]) / 1e6
            lines.append(f"- {title}: {added:.0f} MB more memory, target {row.memory_target / 1e6:.0f} MB; {experts}.")
    return MISSES + "\n" + "\n".join(lines) + "\n" if lines else "All targets are met.\n"


def summary() -> str:
    """Return what the files say in short: whole networks, and where timm's layer is ahead."""
    lines = ["## In short\n", "Time over the static twin's, medians; every row is below, with its spread.\n"]
    header = ("machine", "network", "batch", "condconv", "timm's layer", "target")
    cells = [header, ("---", "---", *("---:",) * 4)]
    ahead = []
    every: list[Row] = []
    for source in sources():
        name = source.stem.removeprefix("performance-")
        rows = [row for row in rows_of(read(source)) if row.refused is None]
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
        ahead.append(f"- **{name}**: ours is ahead in {len(beside) - len(behind)} of {len(beside)} rows{but}.")
    lines += [f"| {' | '.join(each)} |" for each in cells]
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
    return "\n".join((*lines, "", *ahead, "", *([f"Not timed yet: {', '.join(lacking)}.\n"] if lacking else [])))


def section(source: Path) -> str:
    """Return the section of one file."""
    record = read(source)
    rows = rows_of(record)
    name = source.stem.removeprefix("performance-")
    machine, versions = record["machine"], record["versions"]
    call = CallCost(**record["call"]) if "call" in record else None
    verdicts = verdicts_of(rows, call)
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    timm = f", timm {versions['timm']}" if versions["timm"] else ""
    return "\n".join(
        (
            f"## Measured: {name}\n",
            f"{where}; {record['kernels']}; torch {versions['torch']}{timm}; {record['repetitions']} repetitions.",
            f"Of {len(verdicts)} targets {verdicts.count('pass')} are met. Command: `{record['command']}`. Source:",
            f"`{source.relative_to(ROOT).as_posix()}`.\n",
            *([NOTES[name]] if name in NOTES else []),
            f"![Time over the static twin's, with quartiles and bounds](assets/{source.stem}.svg)\n",
            table([row for row in rows if row.refused is None]),
            *([] if call is None else [f"Call overhead (a layer too small to take time): {call}.\n"]),
            misses(rows),
        )
    )


def rules() -> str:
    """Return the tables of "auto", one for each dtype that was measured."""
    return "\n".join((AUTO, *_rule_table(SELECTION), BF16, *_rule_table(SELECTION_BF16)))


def _rule_table(files: Sequence[Path]) -> list[str]:
    """Return the table of the rules, with what each one's implementation took where it decides, and its sources.

    Rules that stand on measurements alone, and decide none of these, are those of the other dtype.
    """
    records = [read(file) for file in files]
    case = itemgetter("layer", "batch", "channels_last", "training")
    rows = {case(row): row for record in records for row in record["rows"]}
    lines: list[tuple[str, ...]] = [("where", "takes", "time / static", "best of the others", "why"), ("---",) * 5]
    beside = set(WHY_NOT)
    for rule in RULES:
        if rule.impl == "native":
            beside.discard("native")
        governed = [row for row in rows.values() if rule.where in (row["rule"], row["otherwise"])]
        own = [row[rule.impl]["median"] for row in governed]
        others = [min(row[name]["median"] for name in beside & row.keys() - {rule.impl}) for row in governed]
        why = f"{len(own)} cases" if rule.because == MEASURED else rule.because
        if governed or rule.because != MEASURED:
            lines.append((rule.where, f"`{rule.impl}`", _range(own), _range(others), why))
    return [*(f"| {' | '.join(line)} |" for line in lines), "", *(_measured(record) for record in records)]


def _measured(record: dict[str, Any]) -> str:
    return (
        f"Measured with {record['num_experts']} experts, {record['threads']} thread, {record['instructions']}, torch "
        f"{record['torch']}, {record['repetitions']} repetitions, batch 1, 8 and 32, inference and training, both "
        f"layouts of x: `{record['command']}`.\n"
    )


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} [{min(values):.2f} {max(values):.2f}]"


def page() -> str:
    """Return the page."""
    return "\n".join((INTRO, summary(), METHOD, *(section(source) for source in sources()), rules(), GPU))


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
    sys.exit(write_or_check(PAGE, page, draw_all))
