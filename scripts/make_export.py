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
KINDS = ("1x1", "depthwise", "dense", "linear", "other")

sys.path.insert(0, str(ROOT))

from condconv.export import FORMATS, export  # noqa: E402
from condconv.export.plan import TABLES  # noqa: E402
from tests.export.cases import LAYERS, layer_case  # noqa: E402
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


def page(text: str, results: dict[str, Any]) -> str:
    """Return the page with its tables written anew.

    Args:
        text: The page as it is.
        results: What benchmarks/results/export.json holds.
    """
    for name, table in (("forms", forms_table()), ("capabilities", capability_table(results))):
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
        measured = run(format)
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {format: measured}, indent=1) + "\n", encoding="utf-8")
    old = PAGE.read_text(encoding="utf-8")
    new = page(old, json.loads(RESULTS.read_text(encoding="utf-8")))
    if arguments.check:
        if old != new:
            print(f"{PAGE} is out of date: run python scripts/make_export.py", file=sys.stderr)
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
