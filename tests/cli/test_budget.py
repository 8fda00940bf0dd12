"""`condconv train --elastic` and `condconv budget`."""

import re

import pytest
import torch

from condconv.cli.main import main
from condconv.convert import keep_member_
from condconv.lab.saved import Reading, load_trained
from condconv.lab.saved.reading import open_images
from tests.cli.test_report import fails
from tests.lab.samples import make_folder

MODEL = "small_separable_cc_025_2e"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs on noise, and its images."""
    folder = tmp_path_factory.mktemp("elastic")
    data = make_folder(folder / "data", size=16, train=8)
    arguments = ["train", "--data", data, "--model", MODEL, "--elastic", "--image-size", 16, "--epochs", 2]
    assert main([*map(str, arguments), "--batch-size", "4", "--device", "cpu", "-o", str(folder / "run")]) == 0
    return folder / "run" / "last.safetensors", data


def trained_on(trained):
    """Return batches of the training images, as in evaluation."""
    path, data = trained
    checkpoint, _ = load_trained(path)
    images, _ = open_images(checkpoint, str(data), split="train")
    return Reading(progress=False).read(images, [*range(len(images))], "images")


def budget(trained, *more) -> int:
    path, data = trained
    options = ["--data", data, "--device", "cpu", "--quiet", "--repetitions", 0, *more]
    return main(["budget", str(path), *map(str, options)])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_member_is_written_that_evaluates_to_the_same(trained, tmp_path, capsys, number):
    out = tmp_path / "member.safetensors"
    assert budget(trained, "--experts", number, "-o", out) == 0
    said = capsys.readouterr().out
    assert f"member   {number} experts" in said
    assert "note:" not in said
    rows = [line.split() for line in said.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    checkpoint, member = load_trained(out)
    assert sum(each.numel() for each in member.parameters()) == int(rows[number][1].replace(",", ""))
    assert main(["evaluate", str(out), "--data", str(trained[1]), "--device", "cpu", "--quiet"]) == 0
    assert f"top-1    {rows[number][4]} %" in capsys.readouterr().out
    _, largest = load_trained(trained[0])
    keep_member_(largest, number)
    for name, parameter in member.named_parameters():
        torch.testing.assert_close(parameter, largest.get_parameter(name))
    assert len(checkpoint.static_layers) == (8 if number == 0 else 0)


def test_a_member_by_rank_is_written_the_members_are_timed_and_drawn(tmp_path, capsys, monkeypatch):
    data = make_folder(tmp_path / "data", size=16, train=4)
    options = ["--model-option", "experts=shared(rank=2)", "--model-option", "routing=softmax", "--image-size", "16"]
    train = ["train", "--data", str(data), "--model", MODEL, "--elastic", *options, "--epochs", "1"]
    assert main([*train, "--batch-size", "4", "--device", "cpu", "-o", str(tmp_path / "run")]) == 0
    ranked = (tmp_path / "run" / "last.safetensors", data)
    capsys.readouterr()
    monkeypatch.setattr("condconv.lab.bench.timing.SECONDS", 0.0)
    out, picture = tmp_path / "member.safetensors", tmp_path / "members.svg"
    assert budget(ranked, "--rank", 1, "-o", out, "--plot", picture, "--repetitions", 2) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert [each.strip() for each in re.split(r" {2,}", lines[0])] == [
        *("ranks", "params", "bytes", "MADDs", "top-1", "time, 1", "time, 32"),
    ]
    rows = [line.split() for line in lines[2:5]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert all(len(re.findall(r"\d+\.\d\d \[\d+\.\d\d \d+\.\d\d\]", line)) == 2 for line in lines[2:5])
    assert lines[2].count("1.00 [1.00 1.00]") == 2
    assert re.search(
        r"time: over that of 0 ranks, \d+\.\d\d ms for 1 and \d+\.\d\d ms for 32 images; cpu, threads: ", said
    )
    assert "member   1 ranks" in said
    assert f"plot     {picture}" in said
    assert picture.read_text().startswith("<?xml")
    checkpoint, member = load_trained(out)
    assert sum(each.numel() for each in member.parameters()) == int(rows[1][1].replace(",", ""))
    assert checkpoint.stores["blocks.0.0.conv_pw"] == "shared(rank=1, gains=False)"
    assert checkpoint.stores["blocks.0.0.conv_dw"] == "shared(rank=None, gains=True)"
    assert main(["evaluate", str(out), "--data", str(data), "--device", "cpu", "--quiet"]) == 0
    assert f"top-1    {rows[1][4]} %" in capsys.readouterr().out
    assert budget((out, data)) == 0  # its members are those up to it
    again = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:4] for row in again] == [row[:4] for row in rows[:2]]


def test_statistics_are_of_images_as_in_training(trained, capsys, monkeypatch):
    """The largest member's are, and all members see the same ones."""
    seen = []

    def keep(network, loader):
        seen.append(torch.cat([*loader]))

    monkeypatch.setattr("condconv.lab.saved.budget.estimate_statistics_", keep)
    assert budget(trained) == 0
    assert budget(trained, "--max-images", 9) == 0
    first, second, *fewer = seen
    assert torch.equal(first, second)
    assert [len(each) for each in fewer] == [9, 9]
    plain = torch.cat([images for images, _ in trained_on(trained)])
    assert first.shape == plain.shape
    assert not any(torch.equal(image, other) for image in first for other in plain)  # cut from it, or mirrored


def test_pictures_that_cannot_be_drawn(trained, tmp_path, capsys):
    base = ["budget", str(trained[0]), "--data", str(trained[1])]
    said = fails(capsys, [*base, "--plot", tmp_path / "members.pdf"])
    assert "`plot` must end in .png or .svg, got" in said
    said = fails(capsys, [*base, "--plot", tmp_path / "no" / "members.svg"])
    assert "`plot` must be in a directory that exists, got" in said


def test_the_run_is_repeated_exactly(trained, tmp_path):
    """Which members learn is drawn from the run's seed."""
    out = tmp_path / "again"
    arguments = ["train", "--data", trained[1], "--model", MODEL, "--elastic", "--image-size", 16, "--epochs", 2]
    assert main([*map(str, arguments), "--batch-size", "4", "--device", "cpu", "-o", str(out)]) == 0
    _, first = load_trained(trained[0])
    _, second = load_trained(out / "last.safetensors")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_budgets_that_cannot_be_had(trained, tmp_path, capsys, untrained):
    path, data = map(str, trained)
    base = ["budget", path, "--data", data, "--device", "cpu", "--quiet"]
    message = "`--max-bytes` must leave a member, got {'max_bytes': 5}: the smallest has 0 experts"
    assert message in fails(capsys, [*base, "--max-bytes", "5", "-o", tmp_path / "a.safetensors"])
    assert "`out` must come with a budget, and a budget with it" in fails(capsys, [*base, "--experts", "1"])
    assert "`out` must be another file than the checkpoint" in fails(capsys, [*base, "--experts", "1", "-o", path])
    message = "`--rank` must be None for a network whose members have fewer experts, got 1: give `--experts`"
    assert message in fails(capsys, [*base, "--rank", "1", "-o", tmp_path / "a.safetensors"])
    other = ["budget", str(untrained[0]), "--data", str(untrained[1])]
    said = fails(capsys, other)
    assert f"`checkpoint` must hold a network with members, got {untrained[0]}: `experts` must be such that" in said
    train = ["train", "--data", data, "--model", MODEL, "--elastic", "-o", tmp_path / "run"]
    assert "`compile` must be False with `elastic`" in fails(capsys, [*train, "--compile"])


@pytest.mark.slow
def test_every_member_of_a_short_training_on_digits_works(tmp_path, capsys):
    out = tmp_path / "run"
    model = "small_separable_cc_100_8e"
    arguments = ["train", "--data", "digits", "--model", model, "--elastic", "--epochs", "6", "--lr", "0.01"]
    assert main([*arguments, "--device", "cpu", "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["budget", str(out / "last.safetensors"), "--device", "cpu", "--quiet", "--repetitions", "0"]) == 0
    scores = [float(each) for each in re.findall(r"(\d+\.\d\d) %", capsys.readouterr().out)]
    assert len(scores) == 9
    assert min(scores) > 60  # chance: 10
    assert scores[-1] > scores[0] - 1  # digits leave little to gain: see docs/elastic.md
