"""The table of implementations."""

from __future__ import annotations

from typing import Any

from condconv.ops.impl.grouped import GROUPED, LOOP
from condconv.ops.impl.matmul import MATMUL
from condconv.ops.impl.mix_outputs import MIX_OUTPUTS
from condconv.ops.impl.native import NATIVE
from condconv.ops.impl.reference import REFERENCE
from condconv.ops.impl.triton import TRITON
from condconv.ops.implementation import Implementation
from condconv.ops.scalars import one_of

__all__ = [
    "AUTO",
    "GROUPED",
    "LOOP",
    "MATMUL",
    "MIX_OUTPUTS",
    "NATIVE",
    "REFERENCE",
    "TABLE",
    "TRITON",
    "check_impl",
]

AUTO = "auto"
"""The name that stands for the choice of `rules`."""

TABLE: dict[str, Implementation] = {
    each.name: each for each in (REFERENCE, MIX_OUTPUTS, GROUPED, MATMUL, LOOP, NATIVE, TRITON)
}


def check_impl(impl: Any) -> str:
    """Return the name of an implementation, or "auto", as plain text.

    Raises:
        UsageError: It is not one.
    """
    return one_of("impl", impl, (AUTO, *TABLE), 'take "auto", which chooses by what was measured')
