"""Members of an elastic network are timed in turn. Nothing is said about speed."""

from typing import ClassVar

import torch
from torch import nn

from condconv.lab.bench import members, timing


class Network(nn.Module):
    """Notes the numbers of images that it is called with, also by its copies."""

    calls: ClassVar[dict[int, list[int]]] = {}

    def __init__(self, name: int) -> None:
        super().__init__()
        self.name = name
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 5, 4)
        assert x.is_contiguous(memory_format=torch.channels_last)
        self.calls.setdefault(self.name, []).append(len(x))
        return self.second(self.first(x))


def test_each_is_compared_with_the_first(monkeypatch):
    now = iter(range(1000))  # each reading of the clock is a second after the last: each measurement takes one
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    found = members.time_members([Network(0), Network(1), Network(2)], (3, 5, 4), repetitions=3)
    assert [[*each] for each in found] == [[1, 32]] * 3
    for each in found:
        for batch in (1, 32):
            assert each[batch] == members.MemberTime(1000.0, timing.Spread(1.0, 1.0, 1.0))
    assert Network.calls == {name: [1] * 5 + [32] * 5 for name in range(3)}  # two to warm up, then three
