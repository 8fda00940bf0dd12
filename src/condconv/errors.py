"""Errors of the package, and words for their messages: the bottom layer, which imports nothing else of it."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class UsageError(ValueError):
    """Something the user gave is wrong, and the message says what, by which rule, and how to fix it.

    The command line prints it as one line, `condconv: error: ...`, and exits with status 2.
    """


class TrainingError(RuntimeError):
    """Training failed on valid input, say the loss became NaN; the command line exits with status 1."""


class ExportError(RuntimeError):
    """A written file does not compute what the network does, and is not kept; the command line exits with status 1."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what is saved. The command line exits with status 130."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra to install.

    Args:
        module: Dotted name of the module to import, for example `"timm.data"`.
        extra: Name of the extra of this package that installs it, for example `"train"`.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The package that holds the module is not installed. An import error that comes
            from inside an installed package is not hidden: it is raised as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'{package} is needed here and is not installed: pip install "condconv[{extra}]"', name=error.name
        ) from error


def few(names: Iterable[str], most: int = 4, between: str = ", ") -> str:
    """Return the first names of a list in words, and how many more there are."""
    first = list(names)
    return between.join(map(shown_name, first[:most])) + (f" and {len(first) - most} more" if len(first) > most else "")


def check_type(argument: str, value: object, kind: Any, rule: str, remedy: str) -> None:
    """Raise an error with its four parts, unless an argument is of a type, or of one of several.

    Args:
        argument: Its name.
        value: What was given.
        kind: As the second argument of `isinstance`.
        rule: What stands after "must".
        remedy: What to do.

    Raises:
        UsageError: It is not.
    """
    if not isinstance(value, kind):
        raise UsageError(f"`{argument}` must {rule}, got {shown(value)}: {remedy}")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, cut if it is long, or its kind if it says nothing."""
    return _cut(_printable((str(error).strip() or type(error).__name__).splitlines()[0]), 300)


def shown(value: object, most: int = 80) -> str:
    """Return a value for a message: its `repr` on one line, cut in the middle if it is longer than `most` characters.

    `repr` escapes control characters in text, so that nothing a file is called reaches a terminal as a command. The
    address in that of a function says nothing to whoever reads it, and is left out.
    """
    try:
        text = repr(value)
        if not isinstance(value, (str, bytes)):
            text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    except (ValueError, RecursionError):  # whole numbers of more than 4300 digits, lists that hold themselves
        text = f"<{type(value).__name__}>"
    return _cut(one_line(text), most)


def shown_name(name: object, most: int = 400) -> str:
    """Return the name of a file, a directory or a class for a message: as it is, without quotes, if it is harmless.

    Control characters, and bytes that are not UTF-8, are escaped; a name that no message can hold is cut in the middle.
    """
    return _cut(_printable(str(name)), most)


def _printable(text: str) -> str:
    if text.isprintable():  # nearly all are, and some are long
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


def one_line(text: str) -> str:
    """Return a text with its lines joined and control characters escaped; spaces stay as they are, as in a path."""
    return _printable(" ".join(each.strip() for each in text.splitlines()))


def command_line(words: Iterable[str]) -> str:
    """Return a command as a shell takes it, on one line, whatever its words hold."""
    return " ".join(shlex.quote(each) if each.isprintable() else _escaped_word(each) for each in words)


def _escaped_word(word: str) -> str:
    """Return a word in the quotes of bash and zsh that know escapes; bytes that are not UTF-8 come out as they were."""
    escapes = {"\\": r"\\", "'": r"\'"}
    escapes |= {
        each: "".join(f"\\x{byte:02x}" for byte in os.fsencode(each)) for each in word if not each.isprintable()
    }
    return f"$'{''.join(escapes.get(each, each) for each in word)}'"
