"""Export networks of the paper at their full size, run the files, and record their sizes and errors.

    python benchmarks/export_networks.py --networks mobilenet_v1_cc_050_8e --formats onnx openvino

Weights are random, and routing is made to tell images apart, as trained routing does. A network in a format with a kind
of weights is one row of the results; rows that are there already stay, unless they are measured again. One that cannot
be exported is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "export-networks.json"
sys.path.insert(0, str(ROOT))

from condconv.export import FORMATS, export  # noqa: E402
from condconv.export.storage import WEIGHTS  # noqa: E402
from tests.export.cases import paper_network  # noqa: E402
from tests.export.test_formats import options  # noqa: E402


def measure(name: str, format: str, weights: str) -> dict[str, Any]:
    """Return one row: what the report says of an exported network.

    Args:
        name: Of a network with experts.
        format: A key of `FORMATS` whose packages are installed.
        weights: How they are stored.
    """
    network = paper_network(name)
    row: dict[str, Any] = {"network": name, "format": format, "weights": weights}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"n{FORMATS[format].SUFFIX}"
        try:
            report = export(network, path, format=format, weights=weights, **options(format))
        except Exception as error:  # a runtime's own, of any kind
            return row | {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
    return row | {
        "seconds": round(time.monotonic() - started, 1),
        "bytes": report.bytes,
        "verified": report.verified,
        "errors": {str(batch): error for batch, error in report.errors.items()},
        "allowed": report.allowed,
        "weights_error": report.weights_error,
        "notes": list(report.notes),
        "versions": dict(report.versions),
    }


def keep(row: dict[str, Any]) -> None:
    """Put a row into the results, in place of the one that has the same network, format and weights."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    key = ("network", "format", "weights")
    others = [each for each in rows if [each[part] for part in key] != [row[part] for part in key]]
    kept = sorted([*others, row], key=lambda each: [each[part] for part in key])
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is asked for, and print and keep a row each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--formats", nargs="+", required=True, choices=FORMATS, metavar="FORMAT")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["float32"], metavar="KIND")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    where = {"machine": platform.machine(), "threads": 1, "command": " ".join(["python", *sys.argv])}
    for name in arguments.networks:
        for format in arguments.formats:
            for weights in arguments.weights:
                row = measure(name, format, weights) | where
                print(row, flush=True)
                keep(row)


if __name__ == "__main__":
    main()
