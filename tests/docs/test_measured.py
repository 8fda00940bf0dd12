"""The numbers in the README, the results and the notebook are those of the files they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from condconv.errors import UsageError
from condconv.lab.experiments import DemoConfig
from condconv.lab.experiments.comparison import Comparison, NetworkNumbers, as_markdown, confidence_half_width
from condconv.lab.experiments.demo import ON
from scripts import make_performance, make_results
from scripts.measured import RESULTS, Measured, measured

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "benchmarks/results/demo-conditions.json"
REPEATED = "benchmarks/results/demo-repetitions.json"
MADE = [*sorted((ROOT / "docs" / "notebook").glob("*.md")), ROOT / "docs" / "results.md"]
FAST = "4 experts, routers at 10 times the rate"


def prose(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def template_text() -> str:
    return "\n".join(template.read_text(encoding="utf-8") for template in make_results.PAGES)


def test_the_table_is_made_from_its_source() -> None:
    record = json.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    comparison = Comparison(
        *(
            NetworkNumbers(**{name: tuple(value) if isinstance(value, list) else value for name, value in each.items()})
            for each in record["networks"].values()
        )
    )
    assert as_markdown(comparison.table()) in (ROOT / "README.md").read_text(encoding="utf-8")
    said = comparison.verdict(validation_images=3596, on=ON)
    assert said == record["verdict"]
    assert said in prose("README.md")
    assert SOURCE in prose("README.md")


def test_the_demo_holds_with_other_seeds() -> None:
    record = json.loads((ROOT / REPEATED).read_text(encoding="utf-8"))
    config = DemoConfig()
    assert record["config"].items() <= vars(config).items()
    firsts, gains, above = [], [], 0
    for each in record["repetitions"]:
        control, routed = each["accuracy"].values()
        found = [100 * (one - other) for one, other in zip(routed, control, strict=True)]
        half = confidence_half_width(found)
        assert half is not None
        above += sum(found) / len(found) > half
        gains += found
        firsts.append(each["first_seed"])
    assert firsts == [config.seeds * number for number in range(10)]
    assert above == record["above_zero"] >= 9
    mean = sum(gains) / len(gains)
    said = prose("README.md")
    assert f"{above} of 10 repetitions, each with its own seeds" in said
    assert f"{mean:.1f} points over all {len(gains)} seeds" in said
    rivals = {what: 100 * sum(each["accuracy"]) / len(each["accuracy"]) for what, each in record["rivals"].items()}
    wider, widest, faster = rivals.values()
    assert widest > 100 * sum(record["repetitions"][0]["accuracy"]["CondConv"]) / config.seeds
    assert f"as many multiply-adds reads {wider:.1f} %" in said
    assert f"as many parameters, at four times the multiply-adds, {widest:.1f} %, more than CondConv" in said
    assert f"twice the learning rate {faster:.1f} %" in said
    assert REPEATED in said


def test_members_of_an_elastic_network_beside_networks_trained_alone() -> None:
    elastic = measured("elastic").runs["dense, elastic-8"]
    alone = measured("small-images-rates", ["optimizer", "lr"])
    rows, behind = [], []
    for number in (0, 2, 4, 8):
        arm = f"dense, {f'deltas-{number}' if number else 'static'}, sgd, 0.4"
        scores = [alone.values(arm, "score")[seed] for seed in elastic]
        found = [100 * run["members"][str(number)] for run in elastic.values()]
        behind.append(sum(scores) / len(scores) - sum(found) / len(found))
        rows.append(f"| {number} | {sum(found) / len(found):.2f} % | {sum(scores) / len(scores):.2f} % |")
    page = (ROOT / "docs" / "elastic.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in page
    assert len(elastic) == 2
    assert "mean over two seeds" in prose("docs/elastic.md")
    said = f"{min(behind):.1f} to {max(behind):.1f} points"
    assert said in prose("docs/elastic.md")
    assert said in prose("README.md")


@pytest.mark.parametrize("template", make_results.PAGES, ids=lambda template: template.name)
def test_a_page_of_results_is_what_its_template_makes(template: Path) -> None:
    page = make_results.PAGES[template]
    assert page.read_text(encoding="utf-8") == make_results.page(template), "run python scripts/make_results.py"


def test_all_that_was_measured_is_on_a_page() -> None:
    assert sorted(make_results.PAGES.values()) == sorted(MADE)
    text = template_text()
    for name in make_results.EXPERIMENTS:
        used = re.search(rf"\{{\{{ use {name} \}}\}}(?:(?!\{{\{{ use).)*\{{\{{ table \}}\}}", text, re.DOTALL)
        assert used, f"no template has the table of {name}"
        assert make_results.picture(name).is_file()
        assert f"assets/{make_results.picture(name).name})" in text
    trials = {path.stem for path in RESULTS.glob("*.json") if '"top1":' in path.read_text(encoding="utf-8")}
    assert trials <= set(re.findall(r"\{\{ trials ([\w-]+) ", text))


def test_results_are_one_page_of_comparisons_with_six_seeds() -> None:
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    rows = [line.strip("| ").split(" | ") for line in lines if re.match(r"\|.* to .*\|", line)]
    assert 8 <= len(rows) <= 16
    assert all(int(row[4]) >= 6 for row in rows)


def test_points_are_not_typed_into_templates() -> None:
    assert re.findall(r"\d+\.\d+ (?:points|above|below|ahead|behind)", template_text()) == []


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ("{{ use larch }}", r"page\.md:3: `experiment` must be one of .*, got 'larch'"),
        ("{{ over 4 experts | larch }}", r"page\.md:3: `arm` must be one of .*, got 'larch'"),
        ("{{ larch 4 experts }}", r"page\.md:3: `slot` must be one of .*, got 'larch'"),
        ("{{ over 4 experts }}", r"page\.md:3: `over` must have the arguments it takes.*missing"),
        ("{{ value 4 experts | larch }}", r"page\.md:3: `field` must be known of '4 experts', got 'larch'"),
        ("{{ use start-trials }}", r"page\.md:3: `keys` must tell all trials apart, got two of 'static'"),
        ("{{ trials start-trials | top-1 = larch }}", r"page\.md:3: `column` must be .*, got 'top-1 = larch'"),
        ("{{ use start-trials | lr | weight_decay }}{{ table }}", r"page\.md:3: `use` must name an experiment"),
    ],
)
def test_a_slot_that_names_nothing_is_refused_with_its_line(slot: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_results.fill(f"# Page\n{{{{ use small-network }}}}\n{slot}\n", "page.md")


def test_slots_compare_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [("a", 0, 0.5), ("a", 1, 0.25), ("b", 0, 0.375), ("b", 1, 0.4375), ("b", 2, 1.0)]
    trials = [{"what": what, "seed": seed, "top1": [0.0, top1], "train_loss": None} for what, seed, top1 in runs]
    (tmp_path / "trees.json").write_text(json.dumps({"settings": "oak", "runs": trials}), encoding="utf-8")
    monkeypatch.setattr("scripts.measured.RESULTS", tmp_path)
    text = make_results.fill(
        "{{ use trees }}{{ over a | b }}; {{ each a | b }}; {{ between a | b }}; {{ ahead a | b }}; {{ seeds a | b }}; "
        "{{ values b }}; {{ interval a | b }}; {{ row a | b }}"
    )
    assert text == (
        "-3.1; 12.5 and -18.8; -18.8 to 12.5; one of two seeds; two seeds; 37.5, 43.8 and 100.0; ; "
        "a | b | -3.12 | | 2 | |"
    )


def test_prose_is_wrapped_and_tables_are_not() -> None:
    words = "larch " * 40
    wrapped = make_results.fill(f"# {words}\n\n- {words}\n- {words}\n\n| {words}|").split("\n\n")
    assert wrapped[0].count("\n") == wrapped[2].count("\n") == 0
    assert all(len(line) <= 120 for line in wrapped[1].splitlines())
    assert [line[:2] for line in wrapped[1].splitlines()] == ["- ", "  ", "  ", "- ", "  ", "  "]


def test_the_readme_and_the_concept_say_what_was_measured() -> None:
    readme = prose("README.md")

    def over(runs: Measured, arm: str, other: str) -> str:
        found = runs.differences(arm, other, "score")
        assert len(found) == 6
        return f"{sum(found) / len(found):.1f}"

    large = measured("small-images-32")
    gain = over(large, "dense, deltas-8", "dense, static")
    assert f"eight experts gain {gain} points on a small network" in readme
    assert f"[eight experts gained {gain} points](results.md)" in prose("docs/index.md")
    control = over(large, "dense, deltas-8", "dense, deltas-constant-8")
    assert f"and {control} over the same experts without routing (six seeds)" in readme
    further = over(measured("continued-training", ["lr"]), "converted-8, 0.01", "static, 0.01")
    assert f"A network that is trained already gains {further} when it is converted and trained on." in readme
    rates = measured("small-images-rates", ["optimizer", "lr"])
    eight, two, sixteen, shared = (
        over(rates, f"dense, {arm}, sgd, 0.4", "dense, static, sgd, 0.4")
        for arm in ("deltas-8", "deltas-2", "deltas-16", "shared-8")
    )
    adamw = over(rates, "dense, deltas-8, adamw, 0.01", "dense, static, adamw, 0.01")
    said = f"At 16 pixels eight experts gain {eight}, {adamw} with AdamW; two gain {two}, sixteen {sixteen};"
    assert f"{said} shared experts {shared}, with 1.7 times" in readme


def test_the_speeds_are_those_of_their_source() -> None:
    source = "benchmarks/results/performance-cpu-avx2.json"
    rows = make_performance.rows_of(make_performance.read(ROOT / source))
    networks = sorted((row for row in rows if row.kind == "network"), key=lambda row: (row.mode, row.batch))
    assert [(row.mode, row.batch) for row in networks] == [
        ("inference", 1),
        ("inference", 8),
        ("inference", 32),
        ("training", 16),
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ours, timm = ([row.ratio[whose].median for row in networks] for whose in ("ours", "timm"))
    lines = [
        f"| {row.mode} | {row.batch} | {mine:.2f} | {other:.2f} |"
        for row, mine, other in zip(networks, ours, timm, strict=True)
    ]
    assert "\n".join(lines) in readme
    assert source in readme
    assert f"takes {min(ours):.2f} to {max(ours):.2f} times as long as the static network" in prose("README.md")
    ahead = [(row.mode, row.batch) for row, mine, other in zip(networks, ours, timm, strict=True) if other < mine]
    assert ahead == [("inference", 1)]
    assert "At batch 1 timm's layer is ahead here" in prose("README.md")
