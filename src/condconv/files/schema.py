"""Checks of plain values, such as a JSON file gives: types, ranges, lengths and depth. Each error names the place.

A schema is put together from these functions: `record({"seed": whole(0), "name": text(80)})` is a check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from condconv.errors import shown

_MOST_DEPTH = 6  # of the values that a field leaves open
_MOST_ENTRIES = 1_000_000
_LARGEST_WHOLE = 2**53  # which every reader of JSON keeps as it is

Check = Callable[[str, Any], None]
"""`check(where, value)` raises a `SchemaError` if the value at that place is not right."""

_Record = TypeVar("_Record")


class SchemaError(ValueError):
    """A value breaks the schema.

    Args:
        where: Its place.
        rule: What it must be.
        value: What it is.
        got: What it is, in words; None to show the value.
    """

    def __init__(self, where: str, rule: str, value: Any, got: str | None = None) -> None:
        super().__init__(f"{where} must be {rule}, got {got or shown(value)}")


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a finite float, or a whole number that is not too large; True and False are neither."""
    return (isinstance(value, float) and math.isfinite(value)) or (type(value) is int and abs(value) <= _LARGEST_WHOLE)


def is_plain(value: Any, depth: int = _MOST_DEPTH) -> bool:
    """Return whether a value is None, a truth value, a number, a text, or mappings and lists of these, not too deep."""
    if isinstance(value, (list, tuple, Mapping)):
        inner = value.values() if isinstance(value, Mapping) else value
        return depth > 0 and len(value) <= _MOST_ENTRIES and all(is_plain(each, depth - 1) for each in inner)
    return value is None or isinstance(value, (bool, int, float, str))


def value_that(rule: str, holds: Callable[[Any], bool]) -> Check:
    """Return a check by a function; the rule stands after "must be"."""

    def check(where: str, value: Any) -> None:
        if not holds(value):
            raise SchemaError(where, rule, value)

    return check


def whole(least: int, most: int = _LARGEST_WHOLE) -> Check:
    """Return the check of whole numbers in a range."""
    rule = f"a whole number from {least} to {most}"
    return value_that(rule, lambda value: type(value) is int and least <= value <= most)


def number(rule: str, holds: Callable[[float], bool] = lambda value: True) -> Check:
    """Return the check of finite numbers for which a function holds."""
    return value_that(rule, lambda value: is_finite_number(value) and holds(value))


def one_of(*choices: Any) -> Check:
    """Return the check of a few values."""
    rule = "one of " + ", ".join(map(repr, choices))
    return value_that(rule, lambda value: type(value) in map(type, choices) and value in choices)


def none_or(check: Check) -> Check:
    """Return a check that None passes too."""
    return lambda where, value: None if value is None else check(where, value)


def sequence(item: Check, least: int = 0, most: int = _MOST_ENTRIES) -> Check:
    """Return the check of lists with entries of one kind."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise SchemaError(where, f"a list of {least} to {most}", value)
        for index, each in enumerate(value):
            item(f"`{where.strip('`')}[{index}]`", each)

    return check


def unique(check: Check) -> Check:
    """Return the check of lists that pass another and repeat nothing."""

    def both(where: str, value: Any) -> None:
        check(where, value)
        if len(set(value)) != len(value):
            raise SchemaError(where, "a list without repetitions", value)

    return both


def mapping(item: Check, key: str = r".{1,1000}") -> Check:
    """Return the check of mappings with entries of one kind, whose names match an expression."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, Mapping) or len(value) > _MOST_ENTRIES:
            raise SchemaError(where, "a mapping", value)
        for name, each in value.items():
            if not isinstance(name, str) or not re.fullmatch(key, name, re.DOTALL):
                raise SchemaError(where, "a mapping with the names that condconv writes", name)
            item(f"{where} of {shown(name)}", each)

    return check


def record(
    checks: Mapping[str, Check],
    *,
    optional: Mapping[str, Check] | None = None,
    exact: bool = True,
    name: str = "it",
) -> Check:
    """Return the check of mappings with a field of its own kind for each name.

    Args:
        checks: Of the fields that must be there.
        optional: Of those that may be missing.
        exact: Whether there may be no others.
        name: What to call one that is not inside another.
    """
    known = {**checks, **(optional or {})}

    def check(where: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise SchemaError(where or name, "a mapping", value)
        missing, unknown = checks.keys() - value.keys(), value.keys() - known.keys() if exact else ()
        if missing or unknown:
            got = f"one without {shown(min(missing))}" if missing else f"one with {shown(min(map(str, unknown)))}"
            raise SchemaError(where or name, f"a mapping of {', '.join(sorted(known))}", value, got)
        prefix = f"{where.strip('`')}." if where else ""
        for field, each in known.items():
            if field in value:
                each(f"`{prefix}{field}`", value[field])

    return check


def anything(where: str, value: Any) -> None:
    """Check nothing."""


PLAIN = value_that(f"a plain value, nested at most {_MOST_DEPTH} deep", is_plain)
FINITE = number("a finite number")
TEXT = value_that("a text", lambda value: type(value) is str)
_OF_TYPES: dict[Any, Check] = {
    str: TEXT,
    int: whole(-_LARGEST_WHOLE),
    bool: one_of(True, False),
    float: FINITE,
    Mapping[str, Any]: mapping(anything),
}


def read_record(kind: type[_Record], values: Any) -> _Record:
    """Return a dataclass of what JSON gave back for it, where a tuple has become a list.

    Args:
        kind: A dataclass of texts, numbers, truth values, mappings, other such dataclasses, and tuples of these; a
            tuple of numbers is not empty.
        values: Its fields by name; those with a default may be missing.

    Raises:
        SchemaError: A value is of another type, a number is not finite, or a field is missing or unknown.
    """
    _check_of(kind)("", values)
    made: _Record = _made(kind, values)
    return made


def _check_of(kind: Any) -> Check:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        checks = {each.name: _check_of(hints[each.name]) for each in fields(kind)}
        needed = [each.name for each in fields(kind) if each.default is each.default_factory is MISSING]
        return record({name: checks[name] for name in needed}, optional=checks)
    if type(None) in get_args(kind):
        return none_or(_check_of(get_args(kind)[0]))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return sequence(_check_of(inner), least=int(inner is float))
    return _OF_TYPES[kind]


def _made(kind: Any, values: Any) -> Any:
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        made: Any = kind
        return made(**{name: _made(hints[name], each) for name, each in values.items()})
    return tuple(_made(get_args(kind)[0], each) for each in values) if get_origin(kind) is tuple else values
