"""Write the tables of docs/export.md: which form each layer takes, and what was exported, run and compared.

`python scripts/make_export.py` writes them from the plan and from benchmarks/results/export.json; `--run FORMAT ...`
exports every layer of the tests first, in this environment, and puts the results into that file; `--check` says
whether the page is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "export.md"
RESULTS = ROOT / "benchmarks" / "results" / "export.json"
NETWORKS = RESULTS.with_name("export-networks.json")
KINDS = ("1x1", "depthwise", "dense", "linear", "other")

sys.path.insert(0, str(ROOT))

from condconv.export import FORMATS, export  # noqa: E402
from condconv.export.plan import TABLES  # noqa: E402
from tests.export.cases import LAYERS, all_layers, errors_by_layer, layer_case  # noqa: E402
from tests.export.test_formats import options  # noqa: E402


def run(format: str) -> dict[str, Any]:
    """Export every layer of the tests to a format; return what is told of it.

    Args:
        format: A key of `FORMATS` whose packages are installed.
    """
    layers: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for name in LAYERS:
        network, example = layer_case(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"n{FORMATS[format].SUFFIX}"
            try:
                report = export(network, path, format=format, example=example, **options(format))
            except Exception as error:  # a runtime's own, of any kind: the table says that it cannot be had
                layers[name] = {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
                print(format, name, layers[name], flush=True)
                continue
        versions = dict(report.versions)
        layers[name] = {
            "form": report.layers[0].form,
            "batches": sorted(report.errors),
            "error": max(report.errors.values(), default=None),
            "verified": report.verified,
        }
        print(format, name, layers[name], flush=True)
    return {"versions": versions, "layers": layers}


def run_together(format: str) -> dict[str, Any]:
    """Export all layers as one network, where a file each would be compiled for minutes; tell what `run` does.

    Args:
        format: A key of `FORMATS`.
    """
    network, example = all_layers()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"n{FORMATS[format].SUFFIX}"
        report = export(network, path, format=format, example=example)
        errors = errors_by_layer(FORMATS[format].load(path), network, tuple(report.errors))
    known = {"batches": sorted(report.errors), "verified": report.verified}
    forms = {each.layer.split(".")[1]: each.form for each in report.layers}
    layers = {name: {"form": forms[name], "error": errors[name], **known} for name in LAYERS}
    return {"versions": dict(report.versions), "layers": layers}


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


def capability_table(results: dict[str, Any]) -> str:
    """Return the table of what was exported and run.

    Args:
        results: What benchmarks/results/export.json holds.
    """
    formats = [format for format in FORMATS if format in results]
    rows = [("layer", *(f"`{format}`" for format in formats))]
    for name in LAYERS:
        rows.append((name, *(_cell(results[format]["layers"].get(name)) for format in formats)))
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


def page(text: str, results: dict[str, Any], networks: list[dict[str, Any]]) -> str:
    """Return the page with its tables written anew.

    Args:
        text: The page as it is.
        results: What benchmarks/results/export.json holds.
        networks: What benchmarks/results/export-networks.json holds.
    """
    tables = {
        "forms": forms_table(),
        "capabilities": capability_table(results),
        "networks": networks_table(networks),
        "weights": weights_table(networks),
    }
    for name, table in tables.items():
        between = re.compile(rf"(<!-- {name} -->\n\n).*?(\n<!-- end -->)", re.DOTALL)
        text = between.sub(lambda match, table=table: match[1] + table + match[2], text)  # type: ignore[misc]
    return text


def main() -> int:
    """Run what is asked for, then write or check the page.

    Returns:
        0 when it is written or up to date, 1 otherwise.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    parser.add_argument("--run", nargs="+", choices=FORMATS, default=[], metavar="FORMAT", help="export to these first")
    arguments = parser.parse_args()
    for format in arguments.run:
        measured = run_together(format) if format == "aoti" else run(format)
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {format: measured}, indent=1) + "\n", encoding="utf-8")
    old = PAGE.read_text(encoding="utf-8")
    new = page(old, *(json.loads(file.read_text(encoding="utf-8")) for file in (RESULTS, NETWORKS)))
    if arguments.check:
        if old != new:
            print(f"{PAGE} is out of date: run python scripts/make_export.py", file=sys.stderr)
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
