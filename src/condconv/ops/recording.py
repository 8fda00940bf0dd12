"""Tracing: `torch.jit.trace`, and what is made on it, such as torch's older exporter to ONNX and counters of work.

What is traced is for a file, as what `torch.export` records: it must load where this package is not installed. While it
traces, torch gives the sizes of tensors as tensors, and warns if one is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def tracing() -> bool:
    """Return whether `torch.jit.trace` records. Not to be called if a compiler follows."""
    return torch._C._get_tracing_state() is not None


@contextmanager
def untraced() -> Iterator[None]:
    """Keep what runs inside out of a traced graph; sizes are plain numbers there."""
    torch_c: Any = torch._C  # whose stubs leave the latter out
    state = torch_c._get_tracing_state()
    torch_c._set_tracing_state(None)
    try:
        yield
    finally:
        torch_c._set_tracing_state(state)


def plain_shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor for a check or a choice: in plain numbers also while it is traced."""
    if torch.compiler.is_compiling() or not tracing():
        return x.shape
    with untraced():
        return x.shape
