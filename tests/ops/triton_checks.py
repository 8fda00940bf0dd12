"""What the Triton kernels are tested on, under the interpreter and on a GPU, and how far a result may be off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condconv.ops import cond_conv2d
from condconv.ops.triton import limits

# Batch, experts, groups, channels and outputs of a group, height, width, kernel, stride, padding, dilation. Tiles under
# the interpreter have 16 rows, channels and pixels for 2 examples, or 4 depthwise channels.
SHAPES: dict[str, tuple[Any, ...]] = {
    "one-of-everything": (1, 1, 1, 1, 1, 1, 1, (1, 1), 1, 0, 1),
    "pointwise-tails": (3, 3, 1, 17, 18, 5, 4, (1, 1), 1, 0, 1),
    "pointwise-stride": (2, 2, 1, 4, 5, 5, 4, (1, 1), 2, 0, 1),
    "pointwise-padded": (2, 2, 1, 3, 4, 2, 3, (1, 1), 1, 1, 1),
    "pointwise-many-experts": (2, 9, 1, 3, 4, 2, 3, (1, 1), 1, 0, 1),
    "dense": (3, 2, 1, 3, 5, 5, 4, (2, 3), 1, 1, 1),
    "dense-one-example": (1, 3, 1, 3, 5, 3, 3, (2, 2), 1, 1, 1),
    "dense-kernel-outside": (2, 2, 1, 3, 4, 1, 2, (3, 3), 1, 2, 1),
    "dense-uneven-grouped": (2, 2, 2, 3, 4, 6, 5, (3, 2), (2, 1), (1, 2), (1, 2)),
    # Pixels with an odd row or column are met by no tap: their gradient is zero.
    "dense-stride-and-dilation": (2, 2, 1, 3, 4, 5, 5, (2, 2), 2, 0, 2),
    "dense-stride-above-kernel": (2, 2, 1, 3, 4, 7, 5, (2, 1), 3, 1, 1),
    "depthwise": (3, 2, 5, 1, 1, 4, 4, (2, 3), 1, 1, 1),
    "depthwise-uneven-multiplier": (2, 2, 3, 1, 2, 5, 6, (3, 2), (2, 1), (1, 2), (1, 2)),
    "depthwise-many-experts": (2, 9, 2, 1, 1, 3, 3, (2, 2), 1, 1, 1),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def draw(name: str, dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], dict[str, Any]]:
    """Return x, experts, routing weights and biases, and the options of a shape of the table."""
    batch, experts, groups, channels, outputs, height, width, kernel, stride, padding, dilation = SHAPES[name]
    drawn = [
        torch.randn(batch, groups * channels, height, width).to(dtype),
        torch.randn(experts, groups * outputs, channels, *kernel).to(dtype),
        torch.randn(batch, experts),
        torch.randn(experts, groups * outputs).to(dtype),
    ]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return [tensor.to(device) for tensor in drawn], options


def run(tensors: list[Tensor], grad_output: Tensor | None, impl: str, options: dict[str, Any]) -> list[Tensor]:
    """Return the output and, for a gradient of it, those of all tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = cond_conv2d(*leaves, impl=impl, **options)
    if grad_output is None:
        grad_output = torch.randn(output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output), grad_output]


def check(tensors: list[Tensor], options: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """Compare output and gradients with the reference in fp64, and return them.

    Each is a sum of products. The size of the sum is what it would be if all numbers were positive. Of that it may
    lose half a rounding to `dtype` three times: in the mixed kernel and bias, in the convolution, and in the sum of
    both. The interpreter cuts numbers off where GPUs round to the nearest, and so loses twice as much in the first two.
    Sums of so few terms in fp32 lose less than 32 roundings to fp32.
    """
    *found, grad_output = run(tensors, None, "triton", options)
    exact = [tensor.cpu().double() for tensor in (*tensors, grad_output)]
    *expected, _ = run(exact[:-1], exact[-1], "reference", options)
    *sizes, _ = run([tensor.abs() for tensor in exact[:-1]], exact[-1].abs(), "reference", options)
    roundings = 2.5 if limits.INTERPRETED else 1.5
    for name, result, reference, size in zip(("y", *"xwrb"), found, expected, sizes, strict=True):
        budget = (roundings * torch.finfo(dtype).eps + 32 * torch.finfo(torch.float32).eps) * size
        error = (result.cpu().double() - reference).abs()
        assert (error <= budget).all(), f"{name}: {(error / budget.clamp_min(1e-30)).max():.2f} times what is allowed"
    return found
