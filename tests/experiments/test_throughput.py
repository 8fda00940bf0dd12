import torch
from torch import nn

from condconv.experiments import throughput


class Counting(nn.Module):
    def __init__(self, log, name):
        super().__init__()
        self.log, self.name = log, name

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        self.log.append(self.name)
        return x


def test_networks_are_measured_by_turns(monkeypatch):
    log: list[str] = []
    # A clock that advances one second each time it is read: a measurement of one pass takes one second.
    ticks = iter(range(1000))
    monkeypatch.setattr("condconv.experiments.throughput.time.perf_counter", lambda: float(next(ticks)))
    networks = {name: Counting(log, name) for name in "ab"}
    rates = throughput.inference_rates(networks, torch.zeros(8, 1), repetitions=3, seconds=4.0)
    assert rates == {"a": (32.0,) * 3, "b": (32.0,) * 3}  # four passes of eight images in one second
    assert log[-24:] == (["a"] * 4 + ["b"] * 4) * 3
