"""Write docs/results.md and docs/notebook/ from the templates in scripts/results and what benchmarks/results holds.

`python scripts/make_results.py` writes the pages and the pictures; `--check` says whether the pages are up to date.

A template is a page with slots. `{{ use NAME }}` sets whose runs the slots after it are about: an experiment, or a file
of single trials, with the keys that distinguish its trials (`{{ use NAME | lr }}`). The others become text, such
as `{{ over 4 experts | static }}`: scripts/slots.py has them. No number that a file holds is typed into a template.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from statistics import mean

from condconv.errors import UsageError, shown
from condconv.lab.experiments.comparison import confidence_half_width
from condconv.lab.experiments.plots import new_figure, save_figure
from condconv.lab.experiments.tables import plot, summarise

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.measured import RESULTS, ROOT, Measured, measured
from scripts.page import write_or_check
from scripts.slots import SLOTS

TEMPLATES = ROOT / "scripts" / "results"
PAGES = {template: ROOT / "docs" / template.relative_to(TEMPLATES) for template in sorted(TEMPLATES.rglob("*.md"))}
"""The page that each template makes."""
EXPERIMENTS = tuple(sorted(path.stem for path in (RESULTS / "experiments").glob("*.json")))
_SLOT = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)
_KEPT = ("#", "|", "!", "<", "```")  # what paragraphs that are not prose begin with


def fill(text: str, name: str = "text") -> str:
    """Return a template's text with its slots filled, and its prose in lines of at most 120 characters.

    Raises:
        UsageError: A slot names something that is not there; the message begins with the template and the line.
    """
    now = Measured(Path("nothing"), {})

    def replacement(match: re.Match[str]) -> str:
        nonlocal now
        slot, _, rest = " ".join(match[1].split()).partition(" ")
        arguments = rest.split(" | ") if rest else []
        try:
            if slot == "use":
                now = measured(arguments[0], arguments[1:])
                return ""
            return filled(now, slot, arguments)
        except UsageError as error:
            raise UsageError(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {error}") from error

    parts = re.split(r"\n\s*\n", _SLOT.sub(replacement, text))
    return "\n\n".join(wrapped(part) for part in parts if part.strip())


def filled(now: Measured, slot: str, arguments: list[str]) -> str:
    """Return the text of one slot.

    Raises:
        UsageError: There is no such slot, it takes other arguments, or one of them names something that is not there.
    """
    if slot not in SLOTS:
        raise UsageError(f"`slot` must be one of {['use', *SLOTS]}, got {shown(slot)}: correct its name")
    try:
        inspect.signature(SLOTS[slot]).bind(now, *arguments)
    except TypeError as error:
        raise UsageError(f"`{slot}` must have the arguments it takes, got {arguments}: {error}") from error
    return SLOTS[slot](now, *arguments)


def wrapped(paragraph: str) -> str:
    """Break the lines of a paragraph, or of the items of a list; tables, headings and code stay as they are."""
    if paragraph.lstrip().startswith(_KEPT):
        return paragraph.strip()
    items = re.split(r"\n(?=- )", paragraph.strip())
    indents = ["  " if item.startswith("- ") else "" for item in items]
    return "\n".join(
        textwrap.fill(" ".join(item.split()), 120, subsequent_indent=i, break_long_words=False, break_on_hyphens=False)
        for item, i in zip(items, indents, strict=True)
    )


def page(template: Path) -> str:
    """Return the page that a template makes."""
    name = template.relative_to(ROOT).as_posix()
    heading, rest = fill(template.read_text(encoding="utf-8"), name).split("\n", 1)
    return f"{heading}\n\n<!-- Written by scripts/make_results.py from {name}: change that. -->\n{rest}\n"


def draw() -> None:
    """Draw the picture of each experiment, and accuracy by number of experts."""
    for name in EXPERIMENTS:
        found = measured(name)
        assert found.experiment is not None
        plot(found.experiment, summarise(found.experiment, found.records), picture(name))
    draw_numbers_of_experts(picture("number-of-experts"))


def draw_numbers_of_experts(path: Path) -> None:
    """Draw what 2 to 16 experts gain over the static network and what that costs, from single trials."""
    runs = measured("small-images-rates", ["optimizer", "lr"])
    static, numbers = "dense, static, sgd, 0.4", (2, 4, 8, 16)
    arms = [f"dense, deltas-{number}, sgd, 0.4" for number in numbers]
    gains = [runs.differences(arm, static, "score") for arm in arms]
    figure, axes = new_figure(1, (6.5, 3.6))
    halves = [confidence_half_width(values) for values in gains]
    axes.errorbar(numbers, [mean(values) for values in gains], halves, marker="o", capsize=3, color="#4477aa")
    axes.axhline(0, color="grey", linewidth=1)
    axes.set(xscale="log", xlabel="experts (multiply-adds)", ylabel="points over the static network")
    costs = [mean(runs.values(arm, "madds").values()) / mean(runs.values(static, "madds").values()) for arm in arms]
    axes.set_xticks(numbers, [f"{number}\n({cost:.2f} x)" for number, cost in zip(numbers, costs, strict=True)])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.set_title(f"small_dense, {min(len(values) for values in gains)} paired seeds, 95 % intervals", fontsize=11)
    save_figure(figure, path)


def picture(name: str) -> Path:
    """Return the file of an experiment's picture."""
    return ROOT / "docs" / "assets" / f"results-{name}.png"


def main() -> int:
    """Write or check every page."""
    try:
        found = [write_or_check(path, partial(page, template)) for template, path in PAGES.items()]
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    if "--check" not in sys.argv:
        draw()
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
