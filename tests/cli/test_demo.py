import json
import shlex

import pytest
import torch
from PIL import Image

from condconv.cli.demo import NEXT
from condconv.cli.main import create_parser, main
from condconv.lab.bench.timing import time_by_turns
from condconv.lab.experiments import DemoConfig, demo
from condconv.lab.experiments.demo_config import CONTROL, ROUTED, STATIC
from condconv.lab.saved.network import build_from_zoo
from condconv.models.pretrained import CONDITIONAL


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
    static, control, routed = (results["networks"][name] for name in ("static", "control", "routed"))
    assert static["params"] < control["params"] < routed["params"] < 1.02 * control["params"]
    assert len(static["accuracy"]) == len(control["accuracy"]) == len(routed["accuracy"]) == 1
    assert results["gains"] == [100 * (routed["accuracy"][0] - control["accuracy"][0])]
    assert results["interval"] is None
    assert results["verdict"].startswith("Nothing is shown with one seed")
    text = (out / "table.md").read_text()
    assert results["verdict"] in text
    assert "digits under four conditions (plain, inverted, turned, noisy)" in text
    assert "this machine and its load" in text
    for name in ("curves.png", "routing.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 400


def test_a_second_demo_keeps_the_runs_and_says_the_same(out, capsys):
    before = json.loads((out / "results.json").read_text())["networks"]
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/last.safetensors")}
    assert sorted(path.parent.name for path in stamps) == ["condconv-seed0", "control-seed0", "static-seed0"]
    assert main(["demo", "--seeds", "1", "--epochs", "1", "-o", str(out), "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    after = json.loads((out / "results.json").read_text())["networks"]
    for name, numbers in before.items():
        assert numbers["accuracy"] == after[name]["accuracy"]
    said = capsys.readouterr().out
    assert "Nothing is shown with one seed" in said
    assert str(out / "routing.png") in said
    assert "measuring" not in said
    assert said.rstrip().endswith(NEXT)


def test_the_next_command_can_be_typed():
    command, *rest = shlex.split(NEXT)
    assert command == "condconv"
    arguments = create_parser().parse_args(rest)
    assert arguments.pretrained
    assert arguments.model in CONDITIONAL  # weights whose routing was trained, so that it depends on the image


def test_the_three_networks_start_as_the_same_function():
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for name in (STATIC, CONTROL, ROUTED):
        torch.manual_seed(100)
        network = build_from_zoo(DemoConfig().run(name, 100), 10, 1).eval()
        outputs[name] = network(images)
    assert torch.allclose(outputs[STATIC], outputs[CONTROL], atol=1e-6)
    assert torch.allclose(outputs[STATIC], outputs[ROUTED], atol=1e-6)
    assert outputs[STATIC].std() > 1e-3


def test_runs_differ_in_network_and_place_only():
    runs = [vars(DemoConfig().run(name, 3)) for name in (STATIC, CONTROL, ROUTED)]
    assert {name for name in runs[0] if len({str(run[name]) for run in runs}) > 1} == {"model", "model_options", "out"}
    assert [run["model"] for run in runs[1:]] == ["small_dense_cc_038_4e"] * 2


def test_other_settings_in_the_same_directory_are_refused(out, capsys):
    assert main(["demo", "--seeds", "1", "--epochs", "2", "-o", str(out)]) == 2
    assert "differs in epochs: 2, not 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table.md", "routing.png"])
def test_a_link_in_the_place_of_a_result_is_refused_before_training(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(demo, "train", None)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    assert main(["demo", "--seeds", "1", "--epochs", "1", "-o", str(tmp_path)]) == 2
    assert f"got {tmp_path / name}, a link: remove it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["results.json", "curves.png"])
def test_a_directory_in_the_place_of_a_result_is_refused_before_training(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(demo, "train", None)
    (tmp_path / name).mkdir()
    assert main(["demo", "--seeds", "1", "--epochs", "1", "-o", str(tmp_path)]) == 2
    assert f"must not have directories in the place of a run's files, got {tmp_path / name}: remove it" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_routing_helps_on_digits_under_four_conditions(tmp_path, capsys):
    """As the command has it, with seeds that neither its settings nor its repetitions used."""
    assert main(["demo", "--first-seed", "1000", "-o", str(tmp_path), "--quiet"]) == 0
    low, high = json.loads((tmp_path / "results.json").read_text())["interval"]
    assert 0 < low < high
    assert "Routing helps on digits under four conditions" in capsys.readouterr().out
