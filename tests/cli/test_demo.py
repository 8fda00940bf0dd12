import json

import pytest
from PIL import Image

from condconv.cli.main import main
from condconv.lab.bench.timing import time_by_turns
from condconv.lab.experiments import demo


@pytest.fixture(autouse=True, scope="module")
def timed_briefly():
    """Measure speeds for a moment: what they are is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            demo,
            "time_by_turns",
            lambda calls, cuda, **_: time_by_turns(calls, repetitions=3, seconds=0.001, cuda=cuda),
        )
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--seeds", "1", "--epochs", "1", "-o", str(directory)]) == 0
    return directory


def test_the_demo_leaves_its_table_numbers_and_pictures(out):
    results = json.loads((out / "results.json").read_text())
    static, conditional = results["networks"].values()
    assert conditional["params"] > static["params"]
    assert len(static["accuracy"]) == len(conditional["accuracy"]) == 1
    assert results["verdict"].startswith("Undecided")
    assert results["verdict"] in (out / "table.md").read_text()
    for name in ("curves.png", "routing.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 400


def test_a_second_demo_keeps_the_runs_and_says_the_same(out, capsys):
    before = json.loads((out / "results.json").read_text())["networks"]
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/last.safetensors")}
    assert len(stamps) == 2
    assert main(["demo", "--seeds", "1", "--epochs", "1", "-o", str(out), "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    after = json.loads((out / "results.json").read_text())["networks"]
    for name, numbers in before.items():
        assert numbers["accuracy"] == after[name]["accuracy"]
    said = capsys.readouterr().out
    assert "Undecided" in said
    assert str(out / "routing.png") in said
    assert "measuring" not in said


def test_other_settings_in_the_same_directory_are_refused(out, capsys):
    assert main(["demo", "--seeds", "1", "--epochs", "2", "-o", str(out)]) == 2
    assert "differs in epochs: 2, not 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table.md", "routing.png"])
def test_a_link_in_the_place_of_a_result_is_refused_before_training(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(demo, "train", None)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    assert main(["demo", "--seeds", "1", "--epochs", "1", "-o", str(tmp_path)]) == 2
    assert f"got {tmp_path / name}, a link: remove it" in capsys.readouterr().err
