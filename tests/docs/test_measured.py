"""The numbers in the README are those of the file they name."""

from __future__ import annotations

import json
from pathlib import Path

from condconv.experiments.comparison import NetworkNumbers, as_markdown, table, verdict
from scripts import make_results

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "benchmarks/results/demo-digits.json"


def test_the_table_is_made_from_its_source() -> None:
    record = json.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    networks = [
        NetworkNumbers(**{name: tuple(value) if isinstance(value, list) else value for name, value in each.items()})
        for each in record["networks"].values()
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert as_markdown(table(*networks)) in readme
    said = verdict(*networks, validation_images=899)
    assert said == record["verdict"]
    assert said in " ".join(readme.split())
    assert SOURCE in readme


def test_the_page_of_results_is_made_from_its_sources() -> None:
    assert make_results.PAGE.read_text(encoding="utf-8") == make_results.page(), "run python scripts/make_results.py"
    for name in make_results.TEXTS:
        assert (make_results.ASSETS / f"results-{name}.png").is_file()
