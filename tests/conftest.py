"""What every test starts from: one thread, fixed seeds, and no luck with uninitialised memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

OPS_TESTS = Path(__file__).parent / "ops"

# Test processes run side by side, one a core: more threads would only make them wait for one another.
torch.set_num_threads(1)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Give what a file of tests draws when it is imported the same random numbers, whatever was imported before it."""
    if isinstance(collector, pytest.Module):
        _seed()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give each test the same random numbers, whatever ran before it."""
    _seed()


@pytest.fixture(autouse=True)
def nan_filled_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill `torch.empty` with NaN in tests of the operations, so that an element nobody wrote is seen.

    Torch fills only while deterministic algorithms are on. They are switched off again at once, because the
    rest of a process must run what a user runs.
    """
    if OPS_TESTS not in request.path.parents:
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
