"""The tables of docs/export.md and docs/export-checks.md, made from the plan and from what benchmarks/results holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from condconv.export import FORMATS
from condconv.export.choose import TABLES

KINDS = ("1x1", "depthwise", "dense", "linear", "other")


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with its tables rewritten.

    Args:
        text: The page as it is. A table stands between the lines `<!-- name -->` and `<!-- end -->`.
        tables: By name.

    Raises:
        ValueError: The page has no place for a table, or several.
    """
    for name, table in tables.items():
        # The table may be empty; what lies between never holds a mark, so no table reaches into the next one.
        between = re.compile(rf"^<!-- {name} -->$(?:(?!^<!-- ).)*^<!-- end -->$", re.DOTALL | re.MULTILINE)
        parts = between.split(text)
        if len(parts) != 2:
            raise ValueError(f"`text` must have one pair of marks for {name}, got {len(parts) - 1}: fix the page")
        text = f"<!-- {name} -->\n\n{table}\n<!-- end -->".join(parts)
    return text


def networks_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of whole networks with fp32 weights.

    Args:
        rows: What benchmarks/results/export-networks.json holds.
    """
    lines: list[tuple[str, ...]] = [("network", "format", "file", "worst error", "allowed", "verified")]
    for row in rows:
        if row["weights"] == "float32":
            lines.append((f"`{row['network']}`", f"`{row['format']}`", *_measured(row)))
    return _table(lines)


def weights_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of networks that were exported with small weights, beside fp32; argument as above."""
    small = {(row["network"], row["format"]) for row in rows if row["weights"] != "float32"}
    lines: list[tuple[str, ...]] = [("network", "format", "weights", "file", "changed by", "verified")]
    for row in rows:
        if (row["network"], row["format"]) in small:
            size, _, _, verified = _measured(row)
            changed = "-" if row["weights_error"] is None else f"{row['weights_error']:.1%}"
            lines.append((f"`{row['network']}`", f"`{row['format']}`", row["weights"], size, changed, verified))
    return _table(lines)


def int8_table(record: dict[str, Any]) -> str:
    """Return the table of trained networks before and after full int8.

    Args:
        record: What benchmarks/results/export-int8.json holds.
    """
    of = f"of {record['images']}"
    lines: list[tuple[str, ...]] = [
        ("network", "fp32", "int8", f"right {of} in fp32, by seed", "right in int8", "other answers")
    ]
    for name in dict.fromkeys(row["network"] for row in record["networks"]):
        rows = [row for row in record["networks"] if row["network"] == name]
        sizes = (f"{size / 1e6:.2f} MB" for size in rows[0]["bytes"])
        right = (", ".join(str(row["right"][kind]) for row in rows) for kind in (0, 1))
        lines.append((f"`{name}`", *sizes, *right, ", ".join(str(row["other_answers"]) for row in rows)))
    return _table(lines)


def _measured(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if "failed" in row:
        return "none", "-", "-", "no"
    error = f"{max(row['errors'].values()):.0e}" if row["errors"] else "-"
    return f"{row['bytes'] / 1e6:.1f} MB", error, f"{row['allowed']:.0e}", "yes" if row["verified"] else "no"


def forms_table() -> str:
    """Return the table of forms by runtime and kind of layer."""
    rows: list[tuple[str, ...]] = [("format", *KINDS)]
    for format, rules in TABLES.items():
        forms = [" or ".join(dict.fromkeys(f"`{rule.form}`" for rule in rules if rule.kind == kind)) for kind in KINDS]
        rows.append((f"`{format}`", *forms))
    return _table(rows)


def capability_table(results: dict[str, Any], layers: Iterable[str]) -> str:
    """Return the table of what was exported and run, and of what the formats say that they can.

    Args:
        results: What benchmarks/results/export.json holds.
        layers: Names of the layers, in the order of the rows.
    """
    formats = [format for format in FORMATS if format in results]
    rows = [("layer", *(f"`{format}`" for format in formats))]
    for name in layers:
        rows.append((name, *(_cell(results[format]["layers"].get(name)) for format in formats)))
    rows.append(("any height and width", *("no" if FORMATS[each].WHY_ONE_SIZE else "yes" for each in formats)))
    versions = [
        f"- `{format}`: {', '.join(f'{name} {number}' for name, number in results[format]['versions'].items())}"
        for format in formats
    ]
    return _table(rows) + "\n" + "\n".join(versions) + "\n"


def _cell(layer: dict[str, Any] | None) -> str:
    if layer is None:
        return "not tried"
    if "failed" in layer:
        return "the converter fails"
    if not layer["verified"]:
        return f"`{layer['form']}`, not run"
    return f"`{layer['form']}`, {layer['error']:.0e}"


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
