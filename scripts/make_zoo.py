"""Write docs/zoo.md and docs/paper.md from the registry: every network with its costs and the paper's.

`python scripts/make_zoo.py` writes the pages, `--check` says whether they are up to date. Their text is in
scripts/templates.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from condconv import count, create_model, get_model_info, list_models
from condconv.models import TABLE_3, TABLE_4, Ablation, PaperRow
from condconv.models.families import FAMILIES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of a script, only its own folder is on the path
from scripts.page import filled, write_or_check
from scripts.tf_profiler import profiler_madds

PAGE = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
PAPER_PAGE = PAGE.with_name("paper.md")


@functools.cache
def measure(name: str, num_classes: int, batched_products: bool, options: tuple[tuple[str, Any], ...] = ()) -> Any:
    """Return parameters, MADDs, and MADDs as the paper counts, of a network."""
    model = create_model(name, num_classes=num_classes, **dict(options))
    image = torch.zeros(1, 3, 224, 224)  # computed: on the meta device most layers are slower
    total = count(model, image).total
    return total.params, total.madds, profiler_madds(model, image, batched_products=batched_products)


def measure_row(name: str, row: PaperRow, options: Mapping[str, Any] | None = None) -> Any:
    """Return what `measure` gives, in the convention of a row."""
    return measure(name, row.num_classes, row.batched_products, tuple((options or {}).items()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column and a last one of text aligned to the left, the others to the right."""
    last = "---" if any(row[-1][:1].isalpha() for row in rows) else "---:"
    lines = [header, ["---"] + ["---:"] * (len(header) - 2) + [last], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs() -> str:
    """Return the table of the listed networks of the paper."""
    rows = []
    for name in list_models():
        if name.startswith("small_"):
            continue
        row = get_model_info(name).paper or PaperRow("", 0)
        params, madds, profiled = measure_row(name, row)
        printed = [] if row.madds is None else [f"{row.madds:.0f}M", f"{profiled / 1e4 / row.madds - 100:+.2f} %"]
        rows.append(
            [
                f"`{name}`",
                f"{params / 1e6:.2f}M" + (f" ({row.params}M)" if row.params else ""),
                f"{madds / 1e6:.1f}M",
                f"{profiled / 1e6:.1f}M",
                *(printed or ["", ""]),
                f"{row.top1:.1f} %" if row.top1 else "",
                row.source.removeprefix("CondConv, ").removesuffix(", read off"),
            ]
        )
    header = [
        "name",
        "params (printed)",
        "MADDs",
        "as the paper",
        "printed",
        "as the paper / printed",
        "top-1",
        "source",
    ]
    return table(header, rows)


def small_costs() -> str:
    """Return the table of the networks for small images."""
    rows = []
    for name in list_models():
        if name.startswith("small_"):
            family = FAMILIES[get_model_info(name).family]
            model = create_model(name, num_classes=family.num_classes)
            total = count(model, torch.zeros(1, 3, family.image_size, family.image_size)).total
            rows.append([f"`{name}`", f"{total.params / 1e3:.1f}k", f"{total.madds / 1e6:.2f}M"])
    return table(["name", "params", "MADDs"], rows)


def ablations(title: str, ablation: Sequence[Ablation]) -> str:
    """Return the table of an ablation."""
    rows = []
    for each in ablation:
        _, madds, profiled = measure_row(each.name, each.row, each.options)
        options = ", ".join(f"`{key}={_text(value)}`" for key, value in each.options.items())
        rows.append(
            [
                each.label,
                options or f"`{each.name}`",
                f"{madds / 1e6:.2f}M",
                f"{profiled / 1e6:.2f}M",
                f"{each.row.madds}M",
                f"{each.row.top1} %",
            ]
        )
    return table([title, "arguments of `create_model`", "MADDs", "as the paper", "printed", "top-1"], rows)


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def misses() -> str:
    """Return the list of the rows that do not come out."""
    rows: list[tuple[str, str, Mapping[str, Any], PaperRow | None]]
    rows = [(name, name, {}, get_model_info(name).paper) for name in list_models()]
    rows += [(f"{each.row.source}, {each.label}", each.name, each.options, each.row) for each in (*TABLE_3, *TABLE_4)]
    found: dict[str, list[str]] = {}
    for title, name, options, row in rows:
        if row is not None and row.miss is not None:
            _, madds, profiled = measure_row(name, row, options)
            digits = 0 if row.num_classes == 1000 else 1
            figures = f"{row.madds:.{digits}f}M printed, {madds / 1e6:.2f}M counted, {profiled / 1e6:.2f}M as the paper"
            found.setdefault(row.miss, []).append(f"- **{title}**: {figures}.")
    return "\n\n".join("\n".join((*lines, "", f"{why[0].upper()}{why[1:]}.")) for why, lines in found.items())


def placements() -> str:
    """Return where each family has its experts."""
    rows = []
    for family in FAMILIES.values():
        size = next(iter(family.listed))
        layers = family.layers(create_model(f"{family.name}_{size}"))
        first = layers.index(family.first_conditional)
        blocks = [name for name in layers if name not in (family.stem, family.head, family.classifier)]
        head = "-" if family.head is None else "experts" if family.conditional_head else "static"
        classifier = "experts" if family.conditional_classifier else "static"
        rows.append(
            [
                f"`{family.name}`, {size}",
                f"{first + 1} of {len(layers)} (`{family.first_conditional}`)",
                f"{sum(name in blocks for name in layers[first:])} of {len(blocks)}",
                head,
                classifier,
                family.source,
            ]
        )
    header = ["family, size", "first layer", "blocks", "head", "classifier", "source"]
    return table(header, rows)


def mobilenet_v2_choices() -> str:
    """Return what each choice of layers costs MobileNetV2."""
    rows = []
    for first in (6, 7, 8, 9, 10, 13):
        cells = []
        for head, classifier in ((True, True), (False, True), (True, False), (False, False)):
            params, profiled = mobilenet_v2_costs(first, head, classifier)
            cells.append(f"{profiled / 1e6:.1f}M, {params / 1e6:.1f}M")
        rows.append([f"{first} (block {first - 1})", *cells])
    header = ["first layer", "head and classifier", "classifier", "head", "blocks alone"]
    return table(header, rows)


def mobilenet_v2_costs(first: int, head: bool, classifier: bool) -> tuple[int, int]:
    """Return parameters and MADDs as the paper counts of a choice of layers of CC-MobileNetV2.

    What the experts of head and classifier cost does not depend on the first layer: it is measured once.
    """

    def costs_of(**options: Any) -> tuple[int, int]:
        params, _, profiled = measure("mobilenet_v2_cc_100_8e", 1000, True, tuple(options.items()))
        return params, profiled

    params, profiled = costs_of(first_layer=first)
    for argument, conditional in (("conditional_head", head), ("conditional_classifier", classifier)):
        if not conditional:
            of_all, without = costs_of(first_layer=8), costs_of(first_layer=8, **{argument: False})
            params, profiled = params - of_all[0] + without[0], profiled - of_all[1] + without[1]
    return params, profiled


def page() -> str:
    """Return the page of the networks."""
    return filled("zoo.md", {"placements": placements, "costs": costs, "small costs": small_costs})


def paper() -> str:
    """Return the page of the paper's figures."""
    slots = {
        "mobilenet v2": mobilenet_v2_choices,
        "table 3": lambda: ablations("routing (Table 3)", TABLE_3),
        "table 4": lambda: ablations("first layer (Table 4)", TABLE_4),
        "misses": misses,
    }
    return filled("paper.md", slots)


if __name__ == "__main__":
    sys.exit(max(write_or_check(PAGE, page), write_or_check(PAPER_PAGE, paper)))
