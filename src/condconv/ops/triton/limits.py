"""What the Triton kernels can do, to be known without importing triton."""

from __future__ import annotations

import importlib.util
import os

import torch

MOST_TAPS = 64  # of a kernel, 8 x 8
MOST_EXPERTS = 32
# Of an example or an expert: offsets inside one have 32 bits, and tiles reach over the edges.
MOST_NUMBERS = 2**30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton looks at the variable when it is imported: it has to be set before.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
INSTALLED = importlib.util.find_spec("triton") is not None


def why_not(device: str) -> str | None:
    """Return why no kernel can run on a type of device, or `None`."""
    if not INSTALLED:
        return "the package triton is not installed; it comes with torch's builds for CUDA on Linux"
    if device != ("cpu" if INTERPRETED else "cuda"):
        where = "Triton's interpreter computes on the CPU" if INTERPRETED else "its kernels are for CUDA GPUs"
        return f"{where}, x is on {device}"
    return None
