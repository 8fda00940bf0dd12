"""The comparison after a change: what it sees, what it says, and that looking changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condconv import convert_
from condconv.convert.verification import check_same_output
from condconv.counting.tracing import trace
from condconv.errors import UsageError

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))


class Head(nn.Module):
    """A convolution, and what a function makes of its output."""

    def __init__(self, finish: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.finish = finish

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.conv(x))


def in_order(y: Tensor) -> Tensor:
    """Positions by score, where scores are as close to one another as their rounding, as an untrained detector's."""
    return y.mul(3e6).frac().flatten(1).argsort(1).float()


def at_whole_pixels(y: Tensor) -> Tensor:
    return y.new_zeros(int(y.mul(3e6).long().sum()) % 50 + 1)


@pytest.mark.parametrize(
    ("finish", "difference"),
    [(in_order, r"an output that differs by \d+ of 293"), (at_whole_pixels, r"an output of shape \(\d+,\) instead of")],
    ids=["sorted", "rounded"],
)
def test_rounding_that_the_model_enlarges_is_named(finish, difference: str) -> None:
    torch.manual_seed(2)
    model = Head(finish)
    with pytest.raises(UsageError, match=rf"{difference}.* 4 roundings, it gives {difference}.*with its own example"):
        convert_(model, 3, example_input=IMAGES)
    assert type(model.conv) is nn.Conv2d


@pytest.mark.parametrize("part", [lambda y: y, lambda y: {"lists": [(y, 7)]}], ids=["tensor", "nested"])
def test_complex_outputs_are_compared(part) -> None:
    model = Head(lambda y: part(torch.complex(y, y)))
    expected = model(IMAGES)
    assert check_same_output(model, IMAGES, expected)
    model.finish = lambda y: part(torch.complex(y, -y))  # only the imaginary part differs
    with pytest.raises(UsageError, match="an output that differs by .* leave out layers whose kernel"):
        check_same_output(model, IMAGES, expected)


def test_a_tolerance_can_be_given() -> None:
    model = Head(lambda y: y)
    expected = model(IMAGES) * 1.01
    check_same_output(model, IMAGES, expected, tolerance=0.02)
    with pytest.raises(UsageError, match="an output that differs by"):
        check_same_output(model, IMAGES, expected, tolerance=0.005)


def test_tensors_without_values_are_nothing_to_compare() -> None:
    model = Head(lambda y: y).to("meta")
    assert check_same_output(model, IMAGES.to("meta"), model(IMAGES.to("meta"))) is None


class Counting(nn.Module):
    """Counts its runs in two buffers, keeps a table it makes when it first runs, and draws numbers always."""

    added: Tensor
    assigned: Tensor
    table: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("added", torch.tensor(4.0))
        self.register_buffer("assigned", torch.tensor([2.0, 0.0]))
        self.register_buffer("table", None)

    def forward(self, x: Tensor) -> Tensor:
        self.added += 1
        self.assigned = self.assigned * 3
        if self.table is None:
            self.table = torch.ones(x.shape[-1])
        return nn.functional.dropout(self.conv(x) + self.table, 0.3)


def test_what_a_run_changes_is_put_back() -> None:
    model = Counting()
    added, numbers = model.added, torch.get_rng_state()
    first, second = trace(model, IMAGES).output, trace(model, IMAGES).output
    assert torch.equal(first, second)
    assert torch.equal(numbers, torch.get_rng_state())
    assert (model.added.item(), model.assigned.tolist()) == (4.0, [2.0, 0.0])
    assert model.added is added
    assert model.table is not None


def test_a_model_that_counts_and_draws_is_converted() -> None:
    model = Counting()
    convert_(model, 3, example_input=IMAGES)
    assert (model.added.item(), model.assigned.tolist()) == (4.0, [2.0, 0.0])
    model(IMAGES)
    assert (model.added.item(), model.assigned.tolist()) == (5.0, [6.0, 0.0])


def test_layers_inside_what_was_compiled_are_seen() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 2, 1))
    model[0].compile(backend="eager")
    model(IMAGES)
    assert [call.name for call in trace(model, IMAGES).calls] == ["", "0", "0.0", "0.1", "1"]
