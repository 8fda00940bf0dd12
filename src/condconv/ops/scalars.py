"""Single user-given values (counts, numbers, names, switches, dtypes and devices), checked and made plain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from condconv.errors import UsageError, shown

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST = 2**31 - 1  # of a count: products of two fit into 64 bits


def positive(name: str, value: Any) -> int:
    """Return a count as an int.

    Raises:
        UsageError: It is not a positive int.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= MOST:
        raise UsageError(f"`{name}` must be a positive int, got {shown(value)}: give a whole number from 1 on")
    return int(value)


def whole(name: str, value: Any) -> int:
    """Return a count that may be zero as an int.

    Raises:
        UsageError: It is not a whole number of at least 0.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) <= MOST:
        raise UsageError(f"`{name}` must be a whole number of at least 0, got {shown(value)}: give 0 for none")
    return int(value)


def number(name: str, value: Any, rule: str, holds: Callable[[float], bool], remedy: str) -> float:
    """Return a real number as a float.

    Args:
        name: Of the argument.
        value: What was given.
        rule: What holds for it, in words.
        holds: The same as a predicate.
        remedy: What to give instead.

    Raises:
        UsageError: It is not a number, or the rule does not hold.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not holds(float(value)):
        raise UsageError(f"`{name}` must be a number {rule}, got {shown(value)}: {remedy}")
    return float(value)


def one_of(name: str, value: Any, names: Iterable[str], remedy: str) -> str:
    """Return a name as plain text.

    Raises:
        UsageError: It is not text, or not one of `names`.
    """
    known = tuple(names)
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"`{name}` must be one of {', '.join(known)}, got {shown(value)}: {remedy}")
    return known[known.index(value)]  # plain, if it was numpy's or of an enumeration


def flag(name: str, value: Any) -> bool:
    """Return a switch as a bool; numbers and numpy's are taken, texts and tensors are not.

    Raises:
        UsageError: It is not one.
    """
    if not (value is None or isinstance(value, (bool, Integral, np.bool_))):  # None is False to torch's layers too
        raise UsageError(f"`{name}` must be True or False, got {shown(value)}: give one of these")
    return bool(value)


def check_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype of parameters, `None` for torch's default.

    Raises:
        UsageError: It is not one that the operation computes in.
    """
    if dtype is not None and dtype not in FLOAT_DTYPES:
        names = ", ".join(map(str, FLOAT_DTYPES))
        raise UsageError(f"`dtype` must be one of {names}, got {shown(dtype)}: None is torch's default dtype")
    return dtype


def check_device(device: Any) -> Any:
    """Return a device as it was given.

    Raises:
        UsageError: torch does not know it by this name.
    """
    if device is not None:
        try:
            torch.device(device)
        except (TypeError, RuntimeError) as error:
            remedy = "write it as torch does, such as 'cpu' or 'cuda:0'"
            raise UsageError(f"`device` must be a device of torch, got {shown(device)}: {remedy}") from error
    return device
