"""Every argument of every public operation: what is wrong is said in one sentence of four parts that names it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condconv import ops
from condconv.errors import UsageError
from tests.messages import why_not_four_parts

NO_SIZES: tuple[Any, ...] = (
    -1,
    0.5,
    "3",
    b"3",
    None,
    [],
    (1, 1, 1, 1),
    2**40,
    torch.ones(1),
    np.float64(2),
    "n" * 9999,
)
NO_NAMES: tuple[Any, ...] = ("nope", None, 1, ["auto"], b"auto", {}, "\n", "n" * 9999)
NO_TENSORS: tuple[Any, ...] = (
    1.5,
    "tensor",
    [[1.0]],
    np.ones(3),
    torch.ones(2, 3).long(),
    torch.ones(2, 3).to_sparse(),
)
WRONG: dict[str, tuple[Any, ...]] = {
    "x": (None, *NO_TENSORS, torch.ones(3)),
    "weight": (None, *NO_TENSORS, torch.ones(3)),
    "routing_weights": (None, *NO_TENSORS, torch.ones(2, 2), torch.ones(3), torch.ones(2, 3, device="meta")),
    "bias": (*NO_TENSORS, torch.ones(6), torch.ones(3, 5), torch.ones(3, 6).double()),
    "stride": (0, *NO_SIZES),
    "padding": (*NO_SIZES, "full"),
    "output_padding": (*NO_SIZES, 1, 9),
    "dilation": (0, *NO_SIZES),
    "groups": (0, *NO_SIZES, 5),
    "padding_mode": NO_NAMES,
    "impl": NO_NAMES,
    "weight_scale": (*NO_TENSORS[:4], torch.ones(3, 6)),
}


def good(op: str) -> dict[str, Any]:
    """Return arguments that fit."""
    if op == "cond_linear":
        shapes: tuple[tuple[int, ...], ...] = ((2, 4), (3, 6, 4))
    else:
        dims = int(op[-2])
        kernel = (3,) * dims
        shapes = (2, 4, *(5,) * dims), ((3, 4, 6, *kernel) if "transpose" in op else (3, 6, 4, *kernel))
    x, weight = (torch.ones(shape) for shape in shapes)
    return {"x": x, "weight": weight, "routing_weights": torch.ones(2, 3), "bias": torch.ones(3, 6)}


CASES = [(op, name) for op in ops.__all__ for name in inspect.signature(getattr(ops, op)).parameters]


@pytest.mark.parametrize(("op", "name"), CASES)
def test_each_argument(op: str, name: str) -> None:
    operation = getattr(ops, op)
    assert operation(**good(op)).shape[:2] == (2, 6)
    for value in WRONG[name]:  # a new argument has no row: give it one
        with pytest.raises(UsageError) as caught:
            operation(**(good(op) | {name: value}))
        fault = why_not_four_parts(str(caught.value), name)
        assert fault is None, f"{fault}: {caught.value}"


@pytest.mark.parametrize("op", ops.__all__)
def test_what_does_not_fit_together(op: str) -> None:
    """The message may name either; it must have its four parts."""
    fits = good(op)
    x, weight = fits["x"], fits["weight"]
    changes: list[dict[str, Tensor]] = [
        {"x": x[0]},
        {"x": x[None]} if op != "cond_linear" else {"x": x[0, 0]},
        {"x": x[:1]},
        {"x": x.double()},
        {"x": x.repeat_interleave(2, -1 if op == "cond_linear" else 1)},
        {"weight": weight[0]},
        {"weight": weight[:0]},
        {"weight": weight[:, :0]},
        {"weight": weight.half()},
        {"weight": weight.to(torch.int8)},
        {"weight": weight.bfloat16().requires_grad_()},
        *([{"x": x[..., :0]}, {"x": x[..., :1], "padding": 9}] if "transpose" in op else []),
    ]
    for change in changes:
        with pytest.raises(UsageError) as caught:
            getattr(ops, op)(**(fits | change))
        fault = why_not_four_parts(str(caught.value))
        assert fault is None, f"{fault}: {caught.value}"
