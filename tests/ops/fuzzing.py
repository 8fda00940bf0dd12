"""Random calls of every operation, and how they must end.

A call is drawn valid, and half of them are then broken in one place. A valid one must give the right numbers, or be
refused because of its `impl`; a broken one must be refused with a message of four parts. No error may be torch's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condconv import ops
from condconv.errors import UsageError
from condconv.ops.implementations import TABLE
from condconv.ops.padding import PADDING_MODES
from tests.messages import why_not_four_parts
from tests.ops.plain_loops import expected

OPERATIONS = tuple(ops.__all__)


@dataclass
class Call:
    """Arguments of an operation by name; what was broken, if anything."""

    op: str
    arguments: dict[str, Any]
    broken: str = ""

    def run(self) -> Tensor:
        """Call the operation."""
        operation: Callable[..., Tensor] = getattr(ops, self.op)
        return operation(**self.arguments)


@dataclass
class Tally:
    """How often which end was met, and the calls that ended wrongly."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def draw(op: str, chance: random.Random) -> Call:
    """Draw a valid call."""
    arguments = _linear(chance) if op == "cond_linear" else _convolution(op, chance)
    dtype = chance.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16))
    impls = ("auto", "auto", "auto", *(impl for impl in TABLE if impl != "triton"))
    tensors = {name: _tensor(shape, dtype, chance) for name, shape in arguments.pop("shapes").items()}
    tensors["routing_weights"] = tensors["routing_weights"].to(chance.choice((dtype, torch.float32, torch.float64)))
    if chance.random() < 0.2:
        del tensors["bias"]
    fate = chance.random()
    if fate < 0.1:
        tensors |= _quantized(tensors, arguments.get("groups", 1), "transpose" in op, chance)
    elif fate < 0.35:
        tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    return Call(op, {**tensors, **arguments, "impl": chance.choice(impls)})


def _quantized(tensors: dict[str, Tensor], groups: int, transposed: bool, chance: random.Random) -> dict[str, Tensor]:
    """Return quantized experts in place of ordinary ones, with their scale if they have one."""
    if tensors["x"].dtype != torch.bfloat16 and chance.random() < 0.5:
        return {"weight": tensors["weight"].bfloat16()}
    weight = (40 * tensors["weight"].float()).clamp(-127, 127).to(torch.int8)
    outputs = weight.shape[2] * groups if transposed else weight.shape[1]
    return {"weight": weight, "weight_scale": 0.01 + torch.arange(len(weight) * outputs).reshape(-1, outputs) % 7}


def _linear(chance: random.Random) -> dict[str, Any]:
    batch, num_experts, channels, outputs = (chance.choice((0, 1, 2, 3)), *(chance.randint(1, 5) for _ in range(3)))
    rows = tuple(chance.choice((0, 1, 2, 3)) for _ in range(chance.choice((0, 0, 1, 2))))
    shapes = {"x": (batch, *rows, channels), "weight": (num_experts, outputs, channels)}
    return {"shapes": shapes | {"routing_weights": (batch, num_experts), "bias": (num_experts, outputs)}}


def _convolution(op: str, chance: random.Random) -> dict[str, Any]:
    dims, transposed = int(op[-2]), "transpose" in op

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.randint(low, high) for _ in range(dims))

    batch, num_experts, groups = (
        chance.choice((0, 1, 1, 2, 3)),
        chance.choice((1, 2, 3, 5)),
        chance.choice((1, 1, 2, 4)),
    )
    inner, outer = (chance.choice((1, 1, 2, 3)) for _ in range(2))
    kernel, stride, dilation = sizes(1, 3), sizes(1, 3), sizes(1, 2)
    if chance.random() < 0.2:
        kernel = (1,) * dims
    channels, outputs = groups * inner, groups * outer
    weight = (num_experts, channels, outer, *kernel) if transposed else (num_experts, outputs, inner, *kernel)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    arguments: dict[str, Any] = {"groups": groups}
    if transposed:
        size, output_padding = (
            sizes(1, 4),
            tuple(chance.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)),
        )
        whole = [(n - 1) * s + r + o for n, s, r, o in zip(size, stride, reach, output_padding, strict=True)]
        padding: Any = tuple(chance.randint(0, min(2, (extent - 1) // 2)) for extent in whole)
        arguments["output_padding"] = _spelled(output_padding, chance)
    else:
        padding, mode, stride = _padding(sizes, stride, chance)
        size = tuple(_least(padding, dim, reach[dim], mode) + chance.randint(0, 4) for dim in range(dims))
        arguments["padding_mode"] = mode
    arguments["padding"] = padding if isinstance(padding, str) else _spelled(padding, chance)
    arguments |= {"stride": _spelled(stride, chance), "dilation": _spelled(dilation, chance)}
    shapes = {"x": (batch, channels, *size), "weight": weight}
    return arguments | {"shapes": shapes | {"routing_weights": (batch, num_experts), "bias": (num_experts, outputs)}}


def _padding(sizes: Callable[..., Any], stride: Any, chance: random.Random) -> tuple[Any, str, Any]:
    mode = chance.choice(("zeros", "zeros", *PADDING_MODES))
    padding = chance.choice((sizes(0, 2), sizes(0, 0), "valid", "same", "tf_same"))
    return padding, mode, (1,) * len(stride) if padding == "same" else stride


def _least(padding: Any, dim: int, reach: int, mode: str) -> int:
    """Return the smallest input for which there is an output, and enough to pad with."""
    if padding in ("same", "tf_same"):
        most = reach // 2 if padding == "same" else reach - 1  # on one side, at most
        return max(1, most + (mode == "reflect")) if mode in ("reflect", "circular") else 1
    amount = 0 if padding == "valid" else padding[dim]
    return max(1, reach - 2 * amount, amount + (mode == "reflect") if mode in ("reflect", "circular") else 1)


def _spelled(sizes: tuple[int, ...], chance: random.Random) -> Any:
    """Return sizes in one of the ways to write them."""
    ways: list[Any] = [sizes, list(sizes), torch.Size(sizes), tuple(np.int64(size) for size in sizes)]
    if len(set(sizes)) == 1:
        ways += [sizes[0], sizes[0], np.int32(sizes[0])]
    return chance.choice(ways)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, chance: random.Random) -> Tensor:
    """Return numbers in one of several layouts."""
    seeded = torch.Generator().manual_seed(chance.randrange(2**31))
    tensor = torch.randn(shape, generator=seeded, dtype=torch.float64).to(dtype)
    layout = chance.choice(("contiguous", "contiguous", "innermost", "every second", "reversed", "expanded"))
    if layout == "innermost" and len(shape) > 2:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "every second":
        return torch.stack((tensor, tensor + 1), -1)[..., 0]
    if layout == "reversed":
        return tensor.permute(*reversed(range(len(shape)))).contiguous().permute(*reversed(range(len(shape))))
    if layout == "expanded" and shape[0] > 0:
        return tensor[:1].expand(shape)
    return tensor


def tried(call: Call, tally: Tally) -> None:
    """Make a call, and add how it ended."""
    about = f"{call.op} {call.broken}: " + ", ".join(f"{name}={_told(value)}" for name, value in call.arguments.items())
    try:
        y = call.run()
        leaves = [value for value in call.arguments.values() if isinstance(value, Tensor) and value.requires_grad]
        grads = torch.autograd.grad(y.sum(), leaves) if leaves and not call.broken else ()
    except UsageError as error:
        fault = why_not_four_parts(str(error))
        by_impl = not call.broken and str(error).startswith("`impl` must be able to run this call, got '")
        tally.ends["refused by impl" if by_impl else "refused"] += 1
        if fault or not (call.broken or by_impl):
            tally.wrong.append(f"{about}\n    {fault or 'refused'}: {error}")
        return
    except Exception as error:
        tally.ends["raw error"] += 1
        tally.wrong.append(f"{about}\n    {type(error).__name__}: {error}")
        return
    if call.broken:
        tally.ends["accepted"] += 1
        tally.wrong.append(f"{about}\n    accepted, though broken")
        return
    tally.ends["with gradients" if grads else "computed"] += 1
    if (fault := _why_wrong(call, y, grads)) is not None:
        tally.ends["wrong"] += 1
        tally.wrong.append(f"{about}\n    {fault}")


def _why_wrong(call: Call, y: Tensor, grads: tuple[Tensor, ...]) -> str | None:
    right, scale = expected(call.op, call.arguments)
    x = call.arguments["x"]
    if y.dtype != x.dtype or tuple(y.shape) != right.shape:
        return f"{y.dtype} {tuple(y.shape)} in place of {x.dtype} {right.shape}"
    eps = torch.finfo(x.dtype).eps
    off = np.abs(y.detach().double().numpy() - right) - 16 * eps * scale - 4 * torch.finfo(x.dtype).tiny
    if off.size and not off.max() <= 0:
        return f"off by {off.max():.2e} more than {16 * eps:.1e} of the sum of absolute values"
    return None if all(grad.isfinite().all() for grad in grads) else "a gradient that is not finite"


def _told(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if type(value) is Tensor and not value.is_nested else repr(value)[:60]
