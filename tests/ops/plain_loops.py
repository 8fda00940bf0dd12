"""What each operation must return, written plainly: numpy, fp64, one loop over the taps; nothing of the package's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_NUMPY_MODES: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def expected(op: str, arguments: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return what a valid call must give, and the same of absolute values, to which rounding is in proportion."""
    arrays = {name: value.detach().double().numpy() for name, value in arguments.items() if isinstance(value, Tensor)}
    bias = arrays.get("bias", np.zeros(1))
    if "weight_scale" in arrays:
        arrays["weight"] = _scaled(op, arguments, arrays["weight"], arrays["weight_scale"])
    results = []
    for change in (np.asarray, np.abs):
        x, weight, routing, shift = (
            change(a) for a in (arrays["x"], arrays["weight"], arrays["routing_weights"], bias)
        )
        kernels = np.einsum("be,e...->b...", routing, weight)
        shifts = np.einsum("be,eo->bo", routing, shift) if "bias" in arrays else np.zeros((len(x), 1))
        results.append(_apply(op, arguments, x, kernels, shifts))
    return results[0], results[1]


def _scaled(op: str, arguments: Mapping[str, Any], weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    if "transpose" not in op:
        return weight * scale[(..., *(None,) * (weight.ndim - 2))]
    groups, (experts, channels, per_group, *kernel) = arguments["groups"], weight.shape
    grouped = weight.reshape(experts, groups, channels // groups, per_group, *kernel)
    return (grouped * scale.reshape(experts, groups, 1, per_group, *(1,) * len(kernel))).reshape(weight.shape)


def _apply(op: str, arguments: Mapping[str, Any], x: np.ndarray, kernels: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    if op == "cond_linear":
        y = np.einsum("bnc,boc->bno", x.reshape(len(x), int(np.prod(x.shape[1:-1])), x.shape[-1]), kernels)
        return (y + shifts[:, None]).reshape(*x.shape[:-1], kernels.shape[1])
    y = _transposed(arguments, x, kernels) if "transpose" in op else _forward(arguments, x, kernels)
    return y + shifts[(..., *(None,) * (y.ndim - 2))]


def _numbers(arguments: Mapping[str, Any], name: str, default: int, dims: int) -> tuple[int, ...]:
    value = arguments.get(name, default)
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),) * dims


def _forward(arguments: Mapping[str, Any], x: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    dims, groups = x.ndim - 2, arguments["groups"]
    stride, dilation = _numbers(arguments, "stride", 1, dims), _numbers(arguments, "dilation", 1, dims)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernels.shape[3:], strict=True)]
    padding = arguments["padding"]
    if padding == "same":
        around = [((r - 1) // 2, r - 1 - (r - 1) // 2) for r in reach]
    elif padding == "tf_same":
        totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(x.shape[2:], stride, reach, strict=True)]
        around = [(total // 2, total - total // 2) for total in totals]
    else:
        around = [(n, n) for n in ((0,) * dims if padding == "valid" else _numbers(arguments, "padding", 0, dims))]
    padded = np.pad(x, [(0, 0), (0, 0), *around], mode=_NUMPY_MODES[arguments["padding_mode"]]) if len(x) else None
    sizes = [(n + sum(a) - r) // s + 1 for n, a, r, s in zip(x.shape[2:], around, reach, stride, strict=True)]
    y = np.zeros((len(x), groups, kernels.shape[1] // groups, *sizes))
    grouped = kernels.reshape(len(x), groups, kernels.shape[1] // groups, *kernels.shape[2:])
    for tap in itertools.product(*(range(k) for k in kernels.shape[3:])) if padded is not None else ():
        spots = [
            slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, dilation, stride, sizes, strict=True)
        ]
        view = padded[(..., *spots)].reshape(len(x), groups, -1, *sizes)
        y += np.einsum("bgc...,bgoc->bgo...", view, grouped[(..., *tap)])
    return y.reshape(len(x), kernels.shape[1], *sizes)


def _transposed(arguments: Mapping[str, Any], x: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    dims, groups = x.ndim - 2, arguments["groups"]
    stride, dilation, padding, over = (
        _numbers(arguments, name, default, dims)
        for name, default in (("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0))
    )
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernels.shape[3:], strict=True)]
    whole = [(n - 1) * s + r + o for n, s, r, o in zip(x.shape[2:], stride, reach, over, strict=True)]
    y = np.zeros((len(x), groups, kernels.shape[2], *whole))
    source = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
    grouped = kernels.reshape(len(x), groups, x.shape[1] // groups, *kernels.shape[2:])
    for tap in itertools.product(*(range(k) for k in kernels.shape[3:])):
        spots = [
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, dilation, stride, x.shape[2:], strict=True)
        ]
        y[(..., *spots)] += np.einsum("bgc...,bgco->bgo...", source, grouped[(..., *tap)])
    inner = [slice(p, n - p) for p, n in zip(padding, whole, strict=True)]
    return y[(..., *inner)].reshape(
        len(x), groups * kernels.shape[2], *(n - 2 * p for n, p in zip(whole, padding, strict=True))
    )
