"""The numbers in the README are those of the file they name."""

from __future__ import annotations

import json
from pathlib import Path

from condconv.experiments.comparison import NetworkNumbers, as_markdown, table, verdict
from scripts import make_performance, make_results

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


def test_the_speeds_are_those_of_their_source() -> None:
    rows = make_performance.rows_of(make_performance.read(ROOT / "benchmarks/results/performance-cpu-avx2.json"))
    networks = sorted((row for row in rows if row.kind == "network"), key=lambda row: (row.mode, row.batch))
    assert [(row.mode, row.batch) for row in networks] == [
        ("inference", 1),
        ("inference", 8),
        ("inference", 32),
        ("training", 16),
    ]
    ours, timm = ([f"{row.ratio[whose].median:.2f}" for row in networks] for whose in ("ours", "timm"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"takes {ours[0]}, {ours[1]} and {ours[2]} times as long as the static network" in readme
    assert f"and {ours[3]} times in training; with timm's layer {timm[0]}, {timm[1]}, {timm[2]} and {timm[3]}" in readme
