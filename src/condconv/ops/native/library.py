"""The compiled kernels, called through ctypes, without torch's headers: one build works with every version of torch."""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, dense_strides, has_multiplier, is_depthwise
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


class Convolution:
    """A convolution of tensors of certain shapes, and the functions of the library for it.

    All tensors are on the CPU, and fp32 but for the experts. Those with pixels have channels innermost in memory;
    experts are dense, each contiguous or with channels innermost. To compute its sizes takes about as long as
    a small convolution: `convolution` keeps them.

    Args:
        x: Shape `[B, C, H, W]`.
        weight: Shape `[E, O, C/G, KH, KW]`.
        dtype: Of the experts, one of `EXPERT_DTYPES`; fp32 for gradients.
        taps_outside: Whether an expert's channels are innermost.
        routing_strides: Of `[B, E]`, or of `[B, E, O]` if each output channel has its own weights, not for gradients.
        geometry: Not transposed.
    """

    def __init__(
        self,
        x: tuple[int, ...],
        weight: tuple[int, ...],
        dtype: torch.dtype,
        taps_outside: bool,
        routing_strides: tuple[int, ...],
        geometry: Geometry,
    ) -> None:
        experts, outputs, channels, *kernel = weight
        out_size = geometry.output_size(x[2:], kernel)
        sizes = (
            *(x[0], experts, geometry.groups, channels, outputs // geometry.groups),
            *(*x[2:], *out_size, *kernel, *geometry.stride, *geometry.padding, *geometry.dilation),
            *(outputs * channels * prod(kernel), 0, taps_outside, EXPERT_DTYPES.index(dtype)),
            *(*routing_strides, 0)[:3],
        )
        self._sizes = bytes(Problem(*sizes))
        self._shape = (x[0], outputs, *out_size)
        self._strides = dense_strides(self._shape, channels_last=True)
        self._depthwise = is_depthwise(geometry.groups, x[1]) and not has_multiplier(x[1], outputs)
        self._library = _loaded()
        self._forward, self._parallel = self._library.condconv_forward, _parallel_for()

    def forward(self, x: Tensor, weight: Tensor, routing_weights: Tensor) -> Tensor:
        """Return the convolution, `[B, O, H', W']`, channels_last."""
        problem = self._problem(x, weight, routing_weights)
        # Quicker than torch.empty, and whatever torch's default dtype and device are.
        y = x.new_empty_strided(self._shape, self._strides)
        problem.y = y.data_ptr()
        if self._forward(byref(problem), self._depthwise, self._parallel):
            _fail()
        return y

    def input_gradient(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, grad_output: Tensor, grad_x: Tensor
    ) -> None:
        """Fill `grad_x` as x; of a dense kernel with taps the experts' channels must be innermost."""
        problem = self._problem(x, weight, routing_weights)
        problem.grad_output, problem.grad_x = grad_output.data_ptr(), grad_x.data_ptr()
        if self._library.condconv_input_gradient(byref(problem), self._depthwise, self._parallel):
            _fail()

    def weight_gradient(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, grad_output: Tensor, grad_weight: Tensor
    ) -> Tensor:
        """Fill `grad_weight`, laid out as the experts, and return the gradient of the routing weights, `[B, E]`.

        As for `input_gradient`, channels must be innermost where there are taps.
        """
        problem = self._problem(x, weight, routing_weights)
        tasks = self._library.condconv_weight_tasks(byref(problem), self._depthwise)
        partial = x.new_empty(tasks, *routing_weights.shape)
        problem.grad_output, problem.grad_weight = grad_output.data_ptr(), grad_weight.data_ptr()
        problem.partial = partial.data_ptr()
        if self._library.condconv_weight_gradient(byref(problem), self._depthwise, self._parallel):
            _fail()
        return partial.sum(0)

    def _problem(self, x: Tensor, weight: Tensor, routing_weights: Tensor) -> Problem:
        """Return the argument of the library for a call: a new one for each, since threads may call at once."""
        problem = Problem.from_buffer_copy(self._sizes)
        problem.threads = torch.get_num_threads()
        problem.x, problem.weight, problem.routing = x.data_ptr(), weight.data_ptr(), routing_weights.data_ptr()
        return problem


convolution = functools.lru_cache(maxsize=4096)(Convolution)


def _fail() -> NoReturn:
    raise MemoryError("the native kernels could not get a buffer of a few megabytes")


def _loaded() -> ctypes.CDLL:
    if LOADED is None:
        raise RuntimeError(str(WHY_NOT))
    return LOADED
