"""What the examples in docstrings start from: the two imports they leave out, and fixed random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import condconv


@pytest.fixture(autouse=True)
def example_names(doctest_namespace: dict[str, Any]) -> None:
    """Give every example `torch` and `condconv`."""
    torch.manual_seed(0)
    doctest_namespace.update(torch=torch, condconv=condconv)
