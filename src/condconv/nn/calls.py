"""Settings as text: `name` or `name(option=value, ...)`, so that a file or a command line can hold them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from condconv.errors import UsageError, shown
from condconv.ops.scalars import one_of

_Entry = TypeVar("_Entry")

_LONGEST = 1000  # characters: Python's parser is not safe from text that is nested thousands deep


def parse_call(text: str, argument: str) -> tuple[str, dict[str, Any]]:
    """Parse a text such as `softmax(temperature=30)`; nothing in it is run.

    Args:
        text: A name, or a name with options in parentheses whose values are Python literals or fractions, such as 1/4.
        argument: The name of the argument that has the text, for the message.

    Returns:
        The name, and the options.

    Raises:
        UsageError: The text has another form.

    Example:
        >>> parse_call("softmax(temperature=30, hidden_ratio=1/4)", "routing")
        ('softmax', {'temperature': 30, 'hidden_ratio': 0.25})
    """
    if text.strip().isidentifier():
        return text.strip(), {}
    try:
        if len(text) > _LONGEST:
            raise ValueError
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {str(each.arg): _value(each.value) for each in call.keywords if each.arg}
            if len(options) == len(call.keywords):
                return call.func.id, options
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        pass
    raise UsageError(
        f"`{argument}` must be a name or name(option=value, ...), got {shown(text)}: values are numbers, text in "
        "quotes, None, True or False"
    )


def _value(node: ast.expr) -> Any:
    """Return a literal, or a fraction of two numbers, such as 1/4."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        over, under = ast.literal_eval(node.left), ast.literal_eval(node.right)
        if not all(type(each) in (int, float) for each in (over, under)):
            raise ValueError
        return over / under
    return ast.literal_eval(node)


def resolve_call(
    text: str,
    argument: str,
    table: Mapping[str, _Entry],
    options_of: Callable[[_Entry], Sequence[str]],
    remedy: str,
    **more: Any,
) -> tuple[_Entry, dict[str, Any]]:
    """Return the entry of a table that a text names, and its options, all of which the entry has.

    Args:
        text: As in `parse_call`.
        argument: What the text was given for, for the message.
        table: Entries by name.
        options_of: Returns the names of the options of an entry.
        remedy: What to do if there is no such name.
        **more: Options that are given besides those in the text, and replace them.

    Raises:
        UsageError: The text cannot be read, or names no entry, or an option that the entry does not have.
    """
    name, options = parse_call(text, argument)
    entry = table[one_of(argument, name, table, remedy)]
    options |= more
    known = options_of(entry)
    if unknown := [option for option in options if option not in known]:
        raise UsageError(
            f"`{argument}` must have options of {name} only, got {shown(unknown[0])}: it has "
            f"{', '.join(known) or 'none'}"
        )
    return entry, options
