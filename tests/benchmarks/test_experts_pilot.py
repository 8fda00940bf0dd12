"""The pilot's arms start as the static network, and their routed parts learn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import experts_pilot, trainings
from benchmarks.experts_layers import FORMS, build, convs, count, parse
from benchmarks.experts_pilot import optimizer_of
from benchmarks.trainings import batches

ARMS = [
    *(f"d-all-{form}" for form in FORMS),
    *(f"s-all-{form}" for form in (*FORMS, "mixcore+taps+gains", "gains-const")),
    "s-pw-outdiag+gains",
    "s-dw-taps@experts=3,root=1",
]
SIZE = 8


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    return images, torch.randint(10, (40,), generator=draw)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_starts_as_the_static_network_and_learns(arm, data):
    model, static = build(arm, seed=3), build(f"{arm[0]}-static", seed=3)
    images = trainings.normalised(data[0])
    torch.testing.assert_close(model(images), static(images))

    before = {name: values.clone() for name, values in model.named_parameters()}
    optimizer = optimizer_of(model, "sgd", 0.1, parse(arm)[-1])
    for _ in range(2):  # the routed parts get no gradient before the routers have moved
        optimizer.zero_grad()
        F.cross_entropy(model(images), data[1]).backward()
        optimizer.step()
    same = {name for name, values in model.named_parameters() if torch.equal(values, before[name])}
    assert same == {name for name in before if arm.endswith("const") and name.endswith("router.linear.weight")}
    assert all(values.isfinite().all() for values in model.parameters())


@pytest.mark.parametrize("arm", [arm for arm in ARMS if not arm.endswith("-se")])
def test_the_kernels_are_those_that_the_layers_convolve_with(arm):
    model = build(arm, seed=3).eval()
    for conv in convs(model):
        if conv.form:
            torch.nn.init.normal_(conv.router.linear.bias)
            x = torch.randn(2, conv.inputs, 5, 5)
            y = conv(x)
            kernels = conv.kernels(conv.router.last).unflatten(-1, (conv.side, conv.side))
            groups = conv.inputs if conv.depthwise else 1
            for image, kernel, expected in zip(x, kernels, y, strict=True):
                one = F.conv2d(image[None], kernel, None, conv.stride, conv.side // 2, 1, groups)
                torch.testing.assert_close(one[0], expected)


def test_costs():
    model = build("s-static", seed=0)
    params, madds = count(model, SIZE)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, 3, SIZE, SIZE))
    assert madds == counter.get_total_flops() // 2
    routed, dearer = count(build("s-dw-taps@experts=2", seed=0), SIZE)
    assert routed - params == sum(2 * 81 + 2 * (channels + 1) for channels in (16, 32, 32, 64))
    assert dearer - madds == sum(2 * channels + 2 * 81 + 81 * channels for channels in (16, 32, 32, 64))


def test_the_records_are_of_these_networks():
    lines = (Path(experts_pilot.__file__).parent / "results" / "experts-pilot.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[1:]]
    assert len({(record["arm"], record["seed"]) for record in records}) == len(records)
    for arm, params, madds in {(record["arm"], record["params"], record["madds"]) for record in records}:
        assert count(build(arm, seed=0), 16) == (params, madds), arm


def test_rate_and_decay_of_the_routed_parts():
    options = parse("s-pw-mixcore@rate=4,decay=0.5,router=2")[-1]
    groups = optimizer_of(build("s-pw-mixcore", seed=0), "sgd", 0.1, options).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 5e-4), (0.4, 6.25e-5), (0.2, 0.0)]
    assert [len(group["params"]) for group in groups] == [9 + 18 + 2, 4 * 3, 4 * 2]


def test_a_run_that_was_stopped_resumes(data, tmp_path, monkeypatch):
    command = ["pilot", "--data", str(tmp_path), "--cache", str(tmp_path), "--out", str(tmp_path / "records.jsonl")]
    monkeypatch.setattr(sys, "argv", [*command, "--arms", "s-all-gains", "--seeds", "1", "--epochs", "2"])
    monkeypatch.setattr(experts_pilot, "load", lambda *_: (data, data))
    monkeypatch.setattr(experts_pilot, "BATCH", 20)
    experts_pilot.main()

    def stop(train, seed, epoch, batch_size):
        if epoch == 1:
            raise KeyboardInterrupt
        return batches(train, seed, epoch, batch_size)

    (tmp_path / "records.jsonl").rename(tmp_path / "whole.jsonl")
    monkeypatch.setattr(trainings, "batches", stop)
    with pytest.raises(KeyboardInterrupt):
        experts_pilot.main()
    monkeypatch.setattr(trainings, "batches", batches)
    experts_pilot.main()
    experts_pilot.main()  # nothing is left to do
    resumed, whole = ((tmp_path / name).read_text().splitlines() for name in ("records.jsonl", "whole.jsonl"))
    first, second = json.loads(resumed[0]), json.loads(whole[0])
    assert len(resumed) == 1
    assert first.pop("seconds") >= 0 <= second.pop("seconds")
    assert first == second
    assert {"top1_mean_weights", "top1_shuffled_weights"} < set(first)
    assert not list(tmp_path.glob("state-*"))


@pytest.mark.parametrize("arm", ["x-static", "s-static-gains", "s-all", "s-up-gains", "s-all-gain", "s-all-gains@e=4"])
def test_a_name_that_is_not_an_arm(arm):
    with pytest.raises(ValueError, match="`arm` must be a net, a place and forms"):
        parse(arm)
