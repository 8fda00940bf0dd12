"""Compile the Triton kernels for GPUs that need not be there; run by test_triton.py, in a process of its own.

What the interpreter cannot see is seen here: types, shapes and layouts that a GPU has no instruction for, and more
shared memory than it has. `python triton_compiled.py CAPABILITY` prints a line a kernel.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import torch

from condconv.ops.geometry import Geometry
from condconv.ops.impl.triton import backward, forward

BF16, FP32 = torch.bfloat16, torch.float32
# Batch, groups, channels and outputs of a group, size, kernel, stride, experts, dtype of x and of the experts.
CALLS: tuple[tuple[Any, ...], ...] = (
    (9, 1, 1152, 192, 7, 1, 1, 8, BF16, BF16),
    (9, 1, 64, 256, 56, 1, 1, 8, FP32, FP32),
    (1, 1, 672, 112, 14, 1, 1, 8, BF16, FP32),
    (5, 1, 512, 512, 7, 3, 1, 8, FP32, FP32),
    (5, 4, 19, 67, 7, 3, 2, 32, BF16, FP32),
    (9, 672, 1, 1, 14, 5, 1, 8, BF16, BF16),
    (5, 40, 1, 2, 7, 8, 2, 32, FP32, FP32),
)


class NoDriver:
    """Stands for the driver of a GPU that can be compiled for and not be launched on."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the number of the device that is not there."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the stream of it."""
        return 0


def compile_only(run: Any) -> Any:
    """Return `JITFunction.run` without the launch."""

    def compiled(kernel: Any, *arguments: Any, **options: Any) -> None:
        found = run(kernel, *arguments, **options | {"warmup": True})
        print(f"{kernel.fn.__module__}.{kernel.fn.__name__} {found.metadata.shared}", flush=True)

    return compiled


def main(capability: int) -> None:
    """Compile what the calls need, in both layouts; meta tensors have no numbers."""
    # Here, since pytest imports all files of the tests, and triton need not be there.
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(NoDriver(GPUTarget("cuda", capability, 32)))
    with patch.object(JITFunction, "run", compile_only(JITFunction.run)):
        for batch, groups, channels, outputs, size, kernel, stride, experts, dtype, experts_dtype in CALLS:
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.empty(batch, groups * channels, size, size, dtype=dtype, device="meta")
                x = x.contiguous(memory_format=layout)
                weight = torch.empty(experts, groups * outputs, channels, kernel, kernel, device="meta")
                arguments = (x, weight.to(experts_dtype), torch.empty(batch, experts, device="meta"))
                geometry = Geometry((stride, stride), (kernel // 2, kernel // 2), (1, 1), groups)
                y = forward(*arguments, None, geometry)
                backward(torch.empty_like(y), *arguments, geometry, (True, True, True))


if __name__ == "__main__":
    main(int(sys.argv[1]))
