"""The compiled kernels, called through ctypes, without torch's headers: one build works with every version of torch."""

from __future__ import annotations

import ctypes
import functools
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, has_multiplier, is_depthwise
from condconv.ops.native.build import LIBRARY, digest_of_sources

INSTRUCTION_SETS = ("generic", "avx2", "avx512")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of x and of experts that are not quantized: what is narrower than fp32 is widened before the call."""
EXPERT_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
MOST_TAPS = 64
_SIZES = (
    *("batch", "experts", "groups", "channels", "outputs"),
    *("height", "width", "out_height", "out_width"),
    *("kernel_height", "kernel_width", "stride_height", "stride_width"),
    *("pad_height", "pad_width", "dilation_height", "dilation_width"),
    *("expert_numbers", "threads", "taps_outside", "kind"),
    *("routing_example", "routing_expert", "routing_output"),
)
_POINTERS = ("x", "weight", "routing", "y", "grad_output", "grad_x", "grad_weight", "partial", "failed")
_FUNCTIONS = ("condconv_forward", "condconv_input_gradient", "condconv_weight_gradient")


class Problem(ctypes.Structure):
    """`struct problem` of native.h."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _POINTERS]


def open_library(path: Path) -> tuple[ctypes.CDLL | None, str | None]:
    """Return the library and `None`, or `None` and the reason why it cannot be used."""
    if not path.is_file():
        remedy = "install a C compiler, then run python -m condconv.ops.native"
        return None, f"its kernels were not compiled when this package was installed: {remedy}"
    try:
        library = ctypes.CDLL(str(path))
        library.condconv_sources.restype = ctypes.c_char_p
        made_from = library.condconv_sources().decode()
    except (OSError, AttributeError) as error:
        return None, f"its kernels cannot be loaded ({error}): run python -m condconv.ops.native"
    if made_from != digest_of_sources():  # after an update of a checkout that was installed in place
        return None, "its kernels were compiled from other sources: run python -m condconv.ops.native"
    for name in _FUNCTIONS:
        getattr(library, name).argtypes = (ctypes.POINTER(Problem), ctypes.c_int, ctypes.c_void_p)
    library.condconv_weight_tasks.argtypes = (ctypes.POINTER(Problem), ctypes.c_int)
    library.condconv_weight_tasks.restype = ctypes.c_int64
    return library, None


# Resolved at import: selection reads it while a graph is recorded, when no library can be loaded.
LOADED, WHY_NOT = open_library(LIBRARY)


def instruction_set() -> str:
    """Return the instruction set in use: "generic", "avx2" or "avx512"; "none" without the library."""
    return "none" if LOADED is None else INSTRUCTION_SETS[LOADED.condconv_instruction_set()]


@functools.cache
def _parallel_for() -> int | None:
    """Return the address of torch's own way to run a loop on its threads, or `None`: then the loop is serial."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")):
        if path.suffix in (".so", ".dylib", ".dll"):
            try:
                return ctypes.cast(ctypes.CDLL(str(path)).torch_parallel_for, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
    return None


class Sizes(NamedTuple):
    """What a call needs to know of its tensors, except their addresses."""

    problem: bytes
    depthwise: bool
    output_shape: tuple[int, ...]
    output_strides: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def _sizes(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    taps_outside: bool,
    kind: int,
    routing_strides: tuple[int, ...],
    geometry: Geometry,
    threads: int,
) -> Sizes:
    """Return the sizes of a call, which takes about as long as a small convolution."""
    experts, outputs, channels, *kernel = weight
    out_size = geometry.output_size(x[2:], kernel)
    sizes = (
        *(x[0], experts, geometry.groups, channels, outputs // geometry.groups),
        *x[2:],
        *out_size,
        *kernel,
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
        *(outputs * channels * prod(kernel), threads, taps_outside, kind),
        *(*routing_strides, 0)[:3],
    )
    depthwise = is_depthwise(geometry.groups, x[1]) and not has_multiplier(x[1], outputs)
    height, width = out_size
    strides = (outputs * height * width, 1, outputs * width, outputs)
    return Sizes(bytes(Problem(*sizes)), depthwise, (x[0], outputs, height, width), strides)


class Call:
    """One convolution, and the functions of the library for it.

    All tensors are on the CPU, and fp32 but for the experts. Those with pixels have channels innermost in memory;
    experts are dense, each contiguous or with channels innermost.

    Args:
        x: `[B, C, H, W]`.
        weight: `[E, O, C/G, KH, KW]`, one of `EXPERT_DTYPES`; fp32 for gradients.
        routing_weights: `[B, E]`, or `[B, E, O]` where each output channel has weights of its own, not for gradients.
        geometry: Not transposed.
    """

    def __init__(self, x: Tensor, weight: Tensor, routing_weights: Tensor, geometry: Geometry) -> None:
        kind = EXPERT_DTYPES.index(weight.dtype)
        outside = not weight.is_contiguous()
        strides, threads = routing_weights.stride(), torch.get_num_threads()
        self._sizes = _sizes(x.shape, weight.shape, outside, kind, strides, geometry, threads)
        self._problem = Problem.from_buffer_copy(self._sizes.problem)
        self._problem.x = x.data_ptr()
        self._problem.weight = weight.data_ptr()
        self._problem.routing = routing_weights.data_ptr()
        self._kept = (x, weight, routing_weights)  # as long as their addresses are in use

    def forward(self) -> Tensor:
        """Return the convolution, `[B, O, H', W']`, channels_last."""
        # Quicker than torch.empty, and whatever torch's default dtype and device are.
        y = torch.empty_strided(self._sizes.output_shape, self._sizes.output_strides, dtype=torch.float32, device="cpu")
        self._run("condconv_forward", y=y)
        return y

    def input_gradient(self, grad_output: Tensor, grad_x: Tensor) -> None:
        """Fill `grad_x` as x; of a dense kernel with taps the experts' channels must be innermost."""
        self._run("condconv_input_gradient", grad_output=grad_output, grad_x=grad_x)

    def weight_gradient(self, grad_output: Tensor, grad_weight: Tensor) -> Tensor:
        """Fill `grad_weight`, laid out as the experts, and return the gradient of the routing weights, `[B, E]`.

        As for `input_gradient`, channels must be innermost where there are taps.
        """
        library = _loaded()
        tasks = library.condconv_weight_tasks(ctypes.byref(self._problem), self._sizes.depthwise)
        partial = torch.empty(tasks, self._problem.batch, self._problem.experts, dtype=torch.float32, device="cpu")
        self._run("condconv_weight_gradient", grad_output=grad_output, grad_weight=grad_weight, partial=partial)
        return partial.sum(0)

    def _run(self, function: str, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            setattr(self._problem, name, tensor.data_ptr())
        if getattr(_loaded(), function)(ctypes.byref(self._problem), self._sizes.depthwise, _parallel_for()):
            raise MemoryError("the native kernels could not get a buffer of a few megabytes")


def _loaded() -> ctypes.CDLL:
    if LOADED is None:
        raise RuntimeError(str(WHY_NOT))
    return LOADED
