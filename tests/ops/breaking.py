"""Ways to break a valid call in one place, so that it must be refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.ops.fuzzing import Call

_NO_TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.detach().float().tolist(),
    lambda t: t.detach().double().numpy(),
    lambda t: 1.5,
    lambda t: "tensor",
    lambda t: t.detach().to_sparse(),
    lambda t: t.detach().float().flatten(min(t.dim(), 5) - 1).to_mkldnn(),  # it has five dimensions at most
    lambda t: t.detach().to(torch.int64),
    lambda t: t.detach().to(torch.bool),
    lambda t: t.detach().to(torch.complex64),
    lambda t: t.detach().to(torch.float8_e5m2),
    lambda t: t.detach().to("meta"),
    lambda t: torch.nested.nested_tensor([t.detach(), t.detach()], layout=torch.jagged),
)
_NO_SIZES: tuple[Any, ...] = (
    -1,
    1.5,
    "2",
    b"1",
    None,
    (),
    {1: 1},
    2**31,
    np.float64(1),
    float("nan"),
    torch.tensor(1),
    "ab",
)
_NO_NAMES: tuple[Any, ...] = ("", "fast", "mirror", None, 0, [], ["auto"], b"zeros", "x" * 10_000, "\x1b[31m")


def broken(call: Call, chance: random.Random) -> Call:
    """Return the same call, but for one argument."""
    ways = [_tensors, _shapes, _names]
    if call.op != "cond_linear":
        ways += [_sizes, _sizes, _groups, _pixels]
    for _ in range(20):
        found = chance.choice(ways)(call, chance)
        if found is not None:
            name, value = found
            shown = f"{name} = {type(value).__name__ if isinstance(value, Tensor) else value!r:.60}"
            return replace(call, arguments=call.arguments | {name: value}, broken=shown)
    raise AssertionError("no way to break this call was found in 20 tries")


def _tensors(call: Call, chance: random.Random) -> tuple[str, Any] | None:
    name = chance.choice([name for name, value in call.arguments.items() if isinstance(value, Tensor)])
    value = call.arguments[name]
    if value.numel() == 0 or name == "weight_scale":
        return name, 1.5
    if name != "bias" and chance.random() < 0.1:
        return name, None
    return name, chance.choice(_NO_TENSORS)(value)


def _shapes(call: Call, chance: random.Random) -> tuple[str, Any] | None:
    name = chance.choice([name for name, value in call.arguments.items() if isinstance(value, Tensor)])
    value = call.arguments[name].detach()
    if name == "weight_scale":
        return name, value[:, :-1]
    dim = chance.randrange(value.dim())
    sized = 2 if name == "x" else 3 if name == "weight" else value.dim()
    if dim >= sized or (name == "x" and call.op == "cond_linear" and 0 < dim < value.dim() - 1):
        return None  # another number of pixels, taps or rows may be right
    if name == "weight" and "transpose" in call.op and dim == 2 and "bias" not in call.arguments:
        return None  # another number of outputs is right too
    if name == "weight" and dim == 1 and "bias" not in call.arguments and "transpose" not in call.op:
        return None
    return chance.choice(
        (
            (name, torch.cat((value, value.narrow(dim, 0, 1)), dim) if value.shape[dim] else value[None]),
            (name, value.sum(0) if name != "x" or call.op != "cond_linear" or value.dim() == 2 else value[..., :0]),
            (
                "weight_scale",
                None if "weight_scale" in call.arguments else torch.ones(call.arguments["weight"].shape[:2]),
            ),
        )
    )


def _sizes(call: Call, chance: random.Random) -> tuple[str, Any] | None:
    names = ["stride", "dilation", "padding"] + (["output_padding"] if "transpose" in call.op else [])
    name, dims = chance.choice(names), int(call.op[-2])
    wrong = [*_NO_SIZES, (1,) * (dims + 1), [1.0] * dims, ("1",) * dims, (-1,) * dims]
    if name in ("stride", "dilation"):
        wrong.append(0)
    if name == "output_padding":
        wrong.append(3)  # no stride and no dilation is larger
    return name, chance.choice(wrong)


def _groups(call: Call, chance: random.Random) -> tuple[str, Any] | None:
    return "groups", chance.choice((0, -1, 1.5, "1", None, [1], 97, 2**40, np.float32(1), b"\x01"))


def _names(call: Call, chance: random.Random) -> tuple[str, Any] | None:
    names = ["impl", *(["padding_mode"] if "padding_mode" in call.arguments else [])]
    return chance.choice(names), chance.choice(_NO_NAMES)


def _pixels(call: Call, chance: random.Random) -> tuple[str, Any] | None:
    """Take the pixels away, ask for more of them than there are, or pad with more than there are."""
    x, weight = call.arguments["x"].detach(), call.arguments["weight"]
    mode = call.arguments.get("padding_mode", "zeros")
    if chance.random() < 0.4:
        return "x", x.narrow(chance.randrange(2, x.dim()), 0, 0)
    if "transpose" in call.op:
        return "padding", 50
    if mode in ("reflect", "circular"):
        return "padding", max(x.shape[2:]) + (mode == "circular")
    if call.arguments["padding"] == "valid":
        return "weight", weight.detach()[..., :1].expand(*weight.shape[:-1], x.shape[-1] + 1)
    return None
