"""Check a model whose weights were rounded: it still runs, in the same dtypes, and its outputs stay finite.

How far rounded weights may move an output is not known, so their change is reported, not judged. The check finds models
that convert their input to the dtype of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from condconv.convert.verification import output_tensors
from condconv.counting.tracing import Trace
from condconv.errors import UsageError, few


def run_watched(
    run: Callable[[], Trace], layers: Mapping[str, nn.Module], expected: Mapping[str, Set[torch.dtype]] | None = None
) -> tuple[Trace, dict[str, set[torch.dtype]]]:
    """Run a model, and record the input dtypes of some of its layers.

    Args:
        run: Runs the model.
        layers: By name.
        expected: The dtypes seen in another run; `None` for any.

    Returns:
        The run, and the dtypes by the layers' names.

    Raises:
        RuntimeError: A layer gets another dtype than before; raised inside the run.
    """
    dtypes: dict[str, set[torch.dtype]] = {}

    def watch(name: str, inputs: tuple[Any, ...]) -> None:
        for dtype in (each.dtype for each in inputs[:1] if isinstance(each, Tensor)):
            dtypes.setdefault(name, set()).add(dtype)
            if expected is not None and dtype not in expected.get(name, {dtype}):
                was = few(map(str, expected[name]))
                raise RuntimeError(f"{name!r} is given {dtype} instead of {was}: by the dtype of a weight?")

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs))
        for name, layer in layers.items()
    ]
    try:
        return run(), dtypes
    finally:
        for handle in handles:
            handle.remove()


def check_rounded(before: Any, after: Any) -> float | None:
    """Compare outputs, and return their relative change, a norm over a norm; `None` without tensors in them.

    Raises:
        UsageError: One has another shape or dtype, or is not finite any more.
    """
    pairs = [*zip_longest(output_tensors(before), output_tensors(after))]
    for one, other in pairs:
        if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
            _fail(f"{_kind(other)} as its output instead of {_kind(one)}")
        if not bool((other.isfinite() | ~one.isfinite()).all()):
            _fail("an output that is not finite any more")
    moved = sum(_square(other - one) for one, other in pairs)
    size = sum(_square(one) for one, _ in pairs)
    return (moved / size) ** 0.5 if size else None


def _fail(what: str) -> None:
    raise UsageError(
        f"`model` must run as before with quantized experts, got {what}, and it has been restored: leave out layers "
        "whose weight, or whose weight's dtype, something uses directly"
    )


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"


def _square(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return finite.to(torch.complex128 if finite.is_complex() else torch.float64).abs().square().sum().item()
