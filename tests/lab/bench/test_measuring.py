"""Parity, timing and memory, on tiny shapes. Nothing is said about speed."""

import dataclasses
import gc
import math

import pytest
import torch
from torch import nn

from condconv.lab.bench.cases import LayerCase, NetworkCase, Trio
from condconv.lab.bench.contender import Conditions, Contender
from condconv.lab.bench.parity import Parity, check_parity
from condconv.lab.bench.run import Task, measure_task
from condconv.lab.bench.timing import Spread, peak_bytes, ratio, time_by_turns
from condconv.ops.implementations import NATIVE, TABLE

LAYER = LayerCase(3, 4, 6, 5)
INFERENCE, TRAINING = Conditions("inference"), Conditions("training")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_row_has_everything(mode, dtype):
    row = measure_task(Task(LAYER, 2, Conditions(mode, dtype)), repetitions=2)
    assert row.refused is None
    assert (row.kind, row.name, row.batch, row.mode, row.dtype) == ("layer", "3x3 4->6 @5", 2, mode, dtype)
    names = ["static", "ours", "timm"]
    assert [*row.layout] == [*row.milliseconds] == [*row.ratio] == [*row.peak_bytes] == names
    assert row.ratio["static"] == Spread(1.0, 1.0, 1.0)
    assert all(value > 0 for value in row.milliseconds.values())


@pytest.mark.parametrize("case", [LAYER, NetworkCase("mobilenet_v1_cc_025_2e")])
def test_a_wrong_output_is_not_timed(monkeypatch, case):
    monkeypatch.setattr("condconv.lab.bench.cases.IMAGE_SIZE", 32)
    monkeypatch.setattr("condconv.lab.bench.contender.Contender.__call__", broken_in_fp32(Contender.__call__))
    row = measure_task(Task(case, 2, INFERENCE), 1)
    assert row.refused is not None
    assert row.refused.startswith("output differs from the reference by 1.0e-03, allowed ")
    assert (row.milliseconds, row.verdict) == ({}, None)


def broken_in_fp32(call):
    def wrong(contender):
        output = call(contender)
        uses_reference = any(getattr(module, "impl", None) == "reference" for module in contender.module.modules())
        return output if uses_reference else output * 1.001

    return wrong


def test_a_wrong_gradient_is_found(monkeypatch):
    def wrong(*arguments):
        grad_x, grad_weight, grad_routing = backward(*arguments)
        return grad_x, grad_weight, grad_routing * 1.001

    backward = NATIVE.backward
    trio = LAYER.make(2)
    assert check_parity(LAYER, trio, TRAINING).holds
    trio.ours.impl = "native"
    monkeypatch.setitem(TABLE, NATIVE.name, dataclasses.replace(NATIVE, backward=wrong))
    worst = check_parity(LAYER, trio, TRAINING)
    assert (worst.tensor, worst.holds) == ("gradient of input 1", False)
    assert worst.error == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("experts", ["dense", "shared(rank=2)"])
def test_a_network_in_training_is_compared_layer_by_layer_too(monkeypatch, experts):
    seen = []

    def layers_of(name):
        seen.append(name)
        return (LayerCase(1, 3, 5, 4), LayerCase(3, 2, 2, 4, groups=2))

    monkeypatch.setattr("condconv.lab.bench.parity.layers_of", layers_of)
    monkeypatch.setattr("condconv.lab.bench.cases.IMAGE_SIZE", 32)
    case = NetworkCase("mobilenet_v1_cc_025_2e", experts)
    assert check_parity(case, case.make(2), TRAINING).holds
    assert seen == ["mobilenet_v1_cc_025_2e"]


def test_no_number_is_no_agreement():
    assert not Parity("output", math.nan, 1.0).holds
    assert Parity("output", math.nan, 1.0).excess == math.inf
    assert Parity("output", 1.0, 1.0).holds


def test_contenders_run_under_their_conditions():
    trio = LAYER.make(2)
    half = Contender(trio.ours, trio.inputs, Conditions("inference", "bf16"), "channels_last")
    assert half().dtype == torch.bfloat16
    assert half.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert half.module.weight[0].is_contiguous(memory_format=torch.channels_last)
    mixed = Contender(trio.ours, trio.inputs, Conditions("training", "bf16"))
    assert mixed().dtype == torch.bfloat16
    assert mixed.module.weight.grad.dtype == torch.float32
    assert {*mixed.results()} == {"output", "gradient of weight", "gradient of input 0", "gradient of input 1"}
    mixed.clear_gradients()
    assert mixed.module.weight.grad is None
    assert trio.ours.weight.grad is None


def test_a_training_step_changes_no_parameter():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    contender = Contender(network, (torch.randn(1, 1, 4, 4),), TRAINING)
    first, second = contender.results(), contender.results()
    assert contender.optimizer is not None
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_calls_are_timed_by_turns(monkeypatch):
    # A clock that advances one second each time it is read: one call takes one second, four calls a quarter each.
    ticks = iter(range(1000))
    monkeypatch.setattr("condconv.lab.bench.timing.time.perf_counter", lambda: float(next(ticks)))
    log = []
    assert gc.isenabled()
    calls = {name: lambda name=name: log.append((name, gc.isenabled())) for name in "ab"}
    times = time_by_turns(calls, 3, seconds=4.0)
    assert times == {"a": [0.25] * 3, "b": [0.25] * 3}
    assert "".join(name for name, _ in log) == "aabb" + ("aaaa" + "bbbb") * 3
    assert not any(enabled for _, enabled in log)
    assert gc.isenabled()


def test_ratios_are_taken_within_a_repetition():
    # 1/1, 4/2, 9/3, 16/4, 25/5 are 1 to 5; the ratio of the medians would be 9/3 too, that of the means 55/15.
    assert ratio([1, 4, 9, 16, 25], [1, 2, 3, 4, 5]) == Spread(3, 2, 4)
    # In each repetition twice as long, although the machine slowed down tenfold.
    assert ratio([2, 20], [1, 10]) == Spread(2, 2, 2)
    assert ratio([3], [2]) == Spread(1.5, 1.5, 1.5)


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self, x):
        first = x + 1  # 4000 bytes
        second = first * 2  # 8000 at a time
        del first
        third = second + 1
        return third * self.weight  # 12000: second, third and the product


def test_peak_memory_counts_what_is_there_at_a_time():
    contender = Contender(Doubling(), (torch.ones(1000),), INFERENCE)
    assert peak_bytes(contender) == 4000 + 12000
    contender = Contender(Doubling(), (torch.ones(1000),), TRAINING)
    # In backward: the product, the third tensor and its gradient, and the weight's; and a few numbers of a constant.
    assert 0 <= peak_bytes(contender) - (4000 + 16000) < 100


def test_the_faster_layout_counts(monkeypatch):
    def times(calls, repetitions, cuda):
        given = {
            "static contiguous": [4.0, 4.0],
            "static channels_last": [2.0, 3.0],
            "ours contiguous": [3.0, 3.0],
            "ours channels_last": [9.0, 9.0],
        }
        return {name: given[name] for name in calls}

    monkeypatch.setattr("condconv.lab.bench.run.time_by_turns", times)
    trio = LAYER.make(8)
    monkeypatch.setattr(LayerCase, "make", lambda case, batch: Trio(trio.static, trio.ours, None, trio.inputs))
    monkeypatch.setattr("condconv.lab.bench.targets.LAYERS", (LAYER,))
    row = measure_task(Task(LAYER, 8, INFERENCE), 2)
    assert row.layout == {"static": "channels_last", "ours": "contiguous"}
    assert row.milliseconds == {"static": 2500.0, "ours": 3000.0}
    assert row.ratio["ours"].median == (1.5 + 1.0) / 2
    # 25 pixels and 8 experts: 1.25 x 33/25 = 1.65.
    assert row.target == pytest.approx(1.65)
    assert row.verdict == "pass"
