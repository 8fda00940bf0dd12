"""Write the tables of docs/export.md and docs/export-checks.md: the forms, and what was exported, run and compared.

`python scripts/make_export.py` writes them from the plan and from benchmarks/results/export.json; `--run FORMAT ...`
exports every layer of the tests first, in this environment, and puts the results into that file; `--check` says
whether the pages are up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "export.md"
PAGES = {PAGE: ("weights", "int8"), PAGE.with_name("export-checks.md"): ("forms", "capabilities", "networks")}
"""The pages, and the tables of each."""
RESULTS = ROOT / "benchmarks" / "results" / "export.json"
NETWORKS = RESULTS.with_name("export-networks.json")
INT8 = RESULTS.with_name("export-int8.json")

sys.path.insert(0, str(ROOT))

from condconv.export import FORMATS, export  # noqa: E402
from scripts.export_tables import (  # noqa: E402
    capability_table,
    fill,
    forms_table,
    int8_table,
    networks_table,
    weights_table,
)
from tests.export.cases import LAYERS, all_layers, errors_by_layer, layer_case  # noqa: E402
from tests.export.test_formats import options  # noqa: E402


def run(format: str) -> dict[str, Any]:
    """Export every layer of the tests to a format; return what is reported of it.

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
                report = export(network, path, format=format, example_input=example, **options(format))
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
        report = export(network, path, format=format, example_input=example)
        errors = errors_by_layer(FORMATS[format].load(path), network, tuple(report.errors))
    known = {"batches": sorted(report.errors), "verified": report.verified}
    forms = {each.layer.split(".")[1]: each.form for each in report.layers}
    layers = {name: {"form": forms[name], "error": errors[name], **known} for name in LAYERS}
    return {"versions": dict(report.versions), "layers": layers}


def page(path: Path) -> str:
    """Return a page with its tables rewritten from the results.

    Args:
        path: A key of `PAGES`.
    """
    results, networks, int8 = (json.loads(file.read_text(encoding="utf-8")) for file in (RESULTS, NETWORKS, INT8))
    tables = {
        "forms": forms_table(),
        "capabilities": capability_table(results, LAYERS),
        "networks": networks_table(networks),
        "weights": weights_table(networks),
        "int8": int8_table(int8),
    }
    return fill(path.read_text(encoding="utf-8"), {name: tables[name] for name in PAGES[path]})


def main() -> int:
    """Run the requested parts, then write or check the pages.

    Returns:
        0 when they are written or up to date, 1 otherwise.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    parser.add_argument("--run", nargs="+", choices=FORMATS, default=[], metavar="FORMAT", help="export to these first")
    arguments = parser.parse_args()
    for format in arguments.run:
        measured = run_together(format) if format == "aoti" else run(format)
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {format: measured}, indent=1) + "\n", encoding="utf-8")
    stale = {path: text for path in PAGES if (text := page(path)) != path.read_text(encoding="utf-8")}
    if arguments.check:
        for path in stale:
            print(f"{path} is out of date: run python scripts/make_export.py", file=sys.stderr)
        return int(bool(stale))
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
