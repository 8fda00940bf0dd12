"""Autocast: whether it is on, and how to compute without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Asked here, once: torch.compile of torch 2.11 cannot trace the question.
_KINDS = ("cpu", "cuda", "hpu", "ipu", "maia", "meta", "mps", "mtia", "privateuseone", "xla", "xpu")
_HAVE_AUTOCAST = frozenset(kind for kind in _KINDS if torch.amp.is_autocast_available(kind))

_NOTHING: AbstractContextManager[Any] = nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype autocast asks for on a device; `None` if it is off or not available (meta)."""
    if device.type in _HAVE_AUTOCAST and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def autocast_disabled(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast: inside, dtypes are chosen explicitly."""
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return _NOTHING
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
