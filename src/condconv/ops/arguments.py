"""User-given arguments other than tensors, checked in one place and turned into plain ints, tuples and text.

Numpy's integers, `torch.Size` and lists mean what ints and tuples mean, but they are not the same in the key of a plan,
and neither torch's operators nor the compiled kernels take all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

from condconv.errors import UsageError, shown
from condconv.ops.padding import PADDING_MODES, PADDING_NAMES, Padding
from condconv.ops.scalars import MOST, one_of, positive

Size = int | Sequence[int]
_TEXT = (str, bytes, bytearray, memoryview)  # sequences too, and of ints all but the first


class How(NamedTuple):
    """The arguments of `cond_conv2d` or `cond_conv_transpose2d` that are not tensors."""

    dims: int
    impl: str
    stride: Size = 1
    padding: Padding = 0
    dilation: Size = 1
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: Size = 0


def normalised(how: How) -> How:
    """Return the same with sizes as ints or tuples of ints, and names as plain text; `impl` is not checked.

    Raises:
        UsageError: A size is not a number or has the wrong length, or a name is unknown.
    """
    dims = how.dims
    stride = _size("stride", how.stride, dims, 1)
    padding, mode = check_padding(how.padding, how.padding_mode, stride, dims, how.transposed)
    dilation = _size("dilation", how.dilation, dims, 1)
    output_padding = _size("output_padding", how.output_padding, dims, 0)
    groups = positive("groups", int(how.groups) if isinstance(how.groups, bool) else how.groups)
    return How(dims, how.impl, stride, padding, dilation, groups, mode, how.transposed, output_padding)


def to_tuple(name: str, value: Any, dims: int, minimum: int) -> tuple[int, ...]:
    """Return a size with one int per spatial dimension.

    Raises:
        UsageError: It is not an int, nor a sequence of `dims` ints, of at least `minimum`.
    """
    size = _size(name, value, dims, minimum)
    return (size,) * dims if isinstance(size, int) else size


def _size(name: str, value: Any, dims: int, minimum: int) -> Any:
    """Return a size as an int, or as a tuple of `dims` ints."""
    several = isinstance(value, Sequence) and not isinstance(value, _TEXT)
    values = tuple(value) if several else (value,)
    wrong = several and len(values) != dims
    if wrong or not all(isinstance(each, Integral) and minimum <= int(each) <= MOST for each in values):
        rule = "an int" if dims == 1 else f"an int or {dims} ints, each"
        remedy = "give one number" + (
            "" if dims == 1 else f" for all spatial dimensions, or one for each of the {dims}"
        )
        raise UsageError(f"`{name}` must be {rule} at least {minimum} and below 2**31, got {shown(value)}: {remedy}")
    return tuple(int(each) for each in values) if several else int(value)  # True is an int too, but not for torch


def check_padding(padding: Any, mode: Any, stride: Size, dims: int, transposed: bool = False) -> tuple[Padding, str]:
    """Return the padding, a name or amounts, and its mode.

    Args:
        padding: As in `cond_conv2d`.
        mode: `padding_mode`.
        stride: One that has been checked.
        dims: Number of spatial dimensions.
        transposed: Whether it is that of a transposed convolution, which has no names and no modes.

    Raises:
        UsageError: Unknown name or mode, a negative or wrong number of amounts, or `"same"` with a stride.
    """
    modes = PADDING_MODES[:1] if transposed else PADDING_MODES
    mode = one_of(
        "padding_mode", mode, modes, "torch has no transposed others" if transposed else "choose one of these"
    )
    if not isinstance(padding, str):
        return _size("padding", padding, dims, 0), mode
    if transposed:
        raise UsageError(
            f"`padding` must be an int or ints for a transposed convolution, got {shown(padding)}: give the pixels "
            "to take off both ends of the output"
        )
    if padding not in PADDING_NAMES:
        raise UsageError(
            f"`padding` must be an int, ints, or one of {', '.join(PADDING_NAMES)}, got {shown(padding)}: give "
            '"valid" for none, or the pixels to add on both sides'
        )
    if padding == "same" and any(step != 1 for step in (stride if isinstance(stride, Sequence) else (stride,))):
        raise UsageError(
            f'`padding` must not be "same" with a stride, got stride {shown(stride)}: use "tf_same" (TensorFlow\'s '
            "rule) or give the amounts; torch defines it for stride 1 only"
        )
    return PADDING_NAMES[PADDING_NAMES.index(padding)], mode
