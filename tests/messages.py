"""What a message of the library must have: the argument, the rule, the value, short and on one line, and the remedy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest

from condconv.errors import UsageError

_PARTS = re.compile(r"`(?P<argument>\w+)` must .+?, got .+?(: |; )\S.{5,}")
_LONGEST = 900

Row = tuple[str, Callable[[], Any]]
"""The argument that is wrong, and a call."""


def why_not_four_parts(message: str, argument: str | None = None) -> str | None:
    """Return what is missing from a message, or `None`.

    Args:
        message: Of an error.
        argument: The one it must name; `None` for any.
    """
    parts = _PARTS.fullmatch(message)
    if parts is None or not message.isprintable():
        return "not of the form `argument` must <rule>, got <value>: <remedy>, on one line"
    if argument is not None and parts["argument"] != argument:
        return f"about `{parts['argument']}`, not `{argument}`"
    return "longer than a sentence" if len(message) >= _LONGEST else None


def each_row(rows: Mapping[str, Sequence[Row]]) -> pytest.MarkDecorator:
    """Return the mark that runs a test with each `row`, of all functions.

    Args:
        rows: By the names of functions.
    """
    flat = [pytest.param(row, id=f"{name}-{index}") for name in rows for index, row in enumerate(rows[name])]
    return pytest.mark.parametrize("row", flat)


def assert_four_parts(argument: str, call: Callable[[], Any], kind: type[Exception] = UsageError) -> None:
    """Check that a call is refused, by an error of a kind, with a message that has all four parts."""
    with pytest.raises(kind) as caught:
        call()
    fault = why_not_four_parts(str(caught.value), argument)
    assert fault is None, f"{fault}: {caught.value}"


def public_functions(room: ModuleType) -> set[str]:
    """Return the names of a room's public functions, and of its classes that check what they are given."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {name for name, each in found.items() if inspect.isfunction(each)}


def assert_every_function_has_rows(room: ModuleType, rows: Mapping[str, Any], without: Mapping[str, str]) -> None:
    """Check that a new public function gets rows, or a reason why nothing can be wrong.

    Args:
        room: With `__all__`.
        rows: By the names of functions.
        without: Reasons by the names of functions that have none.
    """
    assert public_functions(room) == {*rows, *without} & public_functions(room)
    assert {*rows, *without} <= {*room.__all__}
