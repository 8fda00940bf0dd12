"""Settings as text: `name` or `name(option=value, ...)`, so that a file or a command line can hold them."""

from __future__ import annotations

import ast
from typing import Any

from condconv.errors import UsageError, shown

_LONGEST = 1000  # characters: Python's parser is not safe from text that is nested thousands deep


def parse_call(text: str, argument: str) -> tuple[str, dict[str, Any]]:
    """Parse a text such as `softmax(temperature=30)`; nothing in it is run.

    Args:
        text: A name, or a name with options in parentheses whose values are Python literals.
        argument: The name of the argument that has the text, for the message.

    Returns:
        The name, and the options.

    Raises:
        UsageError: The text has another form.

    Example:
        >>> parse_call("softmax(temperature=30)", "routing")
        ('softmax', {'temperature': 30})
    """
    if text.strip().isidentifier():
        return text.strip(), {}
    try:
        if len(text) > _LONGEST:
            raise ValueError
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg}
            if len(options) == len(call.keywords):
                return call.func.id, options
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise UsageError(
        f"`{argument}` must be a name or name(option=value, ...), got {shown(text)}: values are numbers, text in "
        "quotes, None, True or False"
    )
