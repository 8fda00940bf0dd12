"""The count of TensorFlow's profiler, which the page of the networks compares with the paper."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import nn

from scripts import tf_profiler
from scripts.tf_profiler import profiler_madds
from tests.messages import Row, assert_four_parts

_LONG: Any = "x" * 100_000
anything: Any = object()

ROWS: list[Row] = [
    ("model", lambda: profiler_madds(anything)),
    ("batched_products", lambda: profiler_madds(nn.Conv2d(3, 3, 1), batched_products=_LONG)),
    ("example_input", lambda: profiler_madds(nn.Linear(3, 3))),
    ("example_input", lambda: profiler_madds(nn.Conv2d(3, 3, 1), torch.zeros(0, 3, 4, 4))),
]


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_messages_have_four_parts(row: int) -> None:
    assert_four_parts(*ROWS[row])


def test_the_example() -> None:
    assert doctest.testmod(tf_profiler, extraglobs={"torch": torch, "nn": nn}).failed == 0
