"""Records of plain values out of JSON, whose types are checked: what a table is made of may have been edited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from condconv.errors import shown

_Record = TypeVar("_Record")
_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool, "Mapping[str, Any]": Mapping}


def from_plain(kind: type[_Record], values: Any) -> _Record:
    """Return a record of what JSON gave back for it, where a tuple has become a list.

    Args:
        kind: A dataclass of texts, numbers, truth values, mappings, and tuples of these.
        values: Its fields by name.

    Raises:
        TypeError: A value is of another type, a number is not finite, a list of numbers is empty, or a field missing.
        LookupError: There is no such field.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"a record is {shown(values)}")
    types = {each.name: str(each.type) for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _read(name, types[name], value) for name, value in values.items()})


def _read(name: str, kind: str, value: Any) -> Any:
    if kind.endswith(" | None"):
        return None if value is None else _read(name, kind.removesuffix(" | None"), value)
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        if isinstance(value, (list, tuple)) and (value or inner != "float"):
            return tuple(_read(name, inner, each) for each in value)
    elif kind == "float":
        if type(value) in (int, float) and math.isfinite(value):
            return value
    elif isinstance(value, _KINDS[kind]) and not (kind == "int" and isinstance(value, bool)):
        return value
    raise TypeError(f"{name} is {shown(value)}")
