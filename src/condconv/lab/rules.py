"""Rules for the values of settings, from Python and from a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from condconv.errors import UsageError, shown
from condconv.files.paths import why_not_path
from condconv.files.schema import is_plain

_DEEPEST, _LONGEST = 16, 10_000  # more than any options of a network or an optimizer need


@dataclass(frozen=True)
class Rule:
    """A rule for a value.

    Attributes:
        holds: Return whether a value is valid.
        text: The rule in words, after "must be".
        remedy: What to do about an invalid value.
        read: Convert a text of the command line to a value; an invalid text is returned unchanged.
        choices: All valid values, if they are few.
        wrong: Return the part of an invalid value that breaks the rule, to show it.
    """

    holds: Callable[[Any], bool]
    text: str
    remedy: str
    read: Callable[[str], Any] = str
    choices: tuple[Any, ...] = ()
    wrong: Callable[[Any], Any] = lambda value: value

    def check(self, name: str, value: Any) -> None:
        """Check the value of a setting.

        Raises:
            UsageError: It breaks the rule.
        """
        if not self.holds(value):
            raise UsageError(f"`{name}` must be {self.text}, got {shown(self.wrong(value))}: {self.remedy}")

    def parse(self, name: str, text: str) -> Any:
        """Return the value of a text of the command line.

        Raises:
            UsageError: It breaks the rule.
        """
        value = self.read(text)
        self.check(name, value)
        return value


def whole(least: int, most: int = 1_000_000) -> Rule:
    """Return the rule of whole numbers from `least` to `most`."""
    return Rule(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least:,} to {most:,}",
        f"give one in this range, such as {max(least, 1):,}",
        _reader(int),
    )


def number(least: float, most: float = 1_000_000, *, open_below: bool = False) -> Rule:
    """Return the rule of numbers from `least` (excluded if `open_below`) to `most`."""

    def holds(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        return bool((least < value if open_below else least <= value) and value <= most)  # NaN is neither

    text = f"above {least:,g} and at most {most:,}" if open_below else f"from {least:,g} to {most:,}"
    return Rule(holds, f"a number {text}", "give one in this range, such as 0.1", _reader(float))


def one_of(*choices: Any) -> Rule:
    """Return the rule of a few values."""
    by_text = {str(each): each for each in choices}
    return Rule(
        lambda value: any(type(value) is type(each) and value == each for each in choices),
        "one of " + ", ".join(by_text),
        "choose one of these",
        lambda text: by_text.get(text, text),
        choices,
    )


def or_none(rule: Rule) -> Rule:
    """Return a rule that None fulfils too; a command line writes it `none`."""
    return replace(
        rule,
        holds=lambda value: value is None or rule.holds(value),
        text=f"{rule.text}, or None",
        read=lambda text: None if text == "none" else rule.read(text),
    )


def _reader(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


def _is_plain(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and is_plain(value, _DEEPEST) and len(json.dumps(dict(value))) <= _LONGEST
    except (TypeError, ValueError):  # names that JSON does not have, numbers of thousands of digits
        return False


TEXT = Rule(
    lambda value: isinstance(value, str) and value != "" and "\0" not in value,
    "a non-empty text",
    "give a name",
)
PATH = Rule(
    lambda value: isinstance(value, str) and value != "" and why_not_path(value) is None,
    "a non-empty path in UTF-8, no longer than the system allows",
    "give another name",
)
OPTIONS = Rule(
    _is_plain,
    "a mapping of names to values that JSON can hold",
    f"give numbers, texts and lists, nested at most {_DEEPEST} deep and {_LONGEST:,} characters long as JSON",
)
WIDTH = Rule(
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"(?!000)[0-9]{3}", value)),
    "three digits (percent)",
    "write 0.25x as 025",
)
EXPERTS = whole(1, 4096)
BOOL = Rule(lambda value: isinstance(value, bool), "True or False", "give one of the two")
