"""What the values of settings have to be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from condconv.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """What a value has to be.

    Attributes:
        holds: Whether a value is right.
        text: What it must be, in words.
        choices: All values that are right, where they are few.
    """

    holds: Callable[[Any], bool]
    text: str
    choices: tuple[Any, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Check the value of a setting.

        Raises:
            UsageError: It is not what the rule says.
        """
        if not self.holds(value):
            raise UsageError(f"`{name}` must be {self.text}, got {value!r}")


def whole(least: int) -> Rule:
    """Return the rule of whole numbers from `least` on."""
    return Rule(lambda value: type(value) is int and value >= least, f"a whole number of at least {least}")


def number(least: float, most: float = math.inf, *, open_below: bool = False) -> Rule:
    """Return the rule of finite numbers from `least`, itself left out if `open_below`, to `most`."""

    def holds(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return bool((least < value if open_below else least <= value) and value <= most)

    if math.isinf(most):
        return Rule(holds, f"a finite number {'above' if open_below else 'of at least'} {least:g}")
    text = f"above {least:g} and at most {most:g}" if open_below else f"from {least:g} to {most:g}"
    return Rule(holds, f"a number {text}")


def one_of(*choices: Any) -> Rule:
    """Return the rule of a few values."""
    return Rule(lambda value: value in choices, "one of " + ", ".join(map(str, choices)), choices)


def or_none(rule: Rule) -> Rule:
    """Return a rule that None fulfils too."""
    return Rule(lambda value: value is None or rule.holds(value), f"{rule.text}, or None", rule.choices)


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return True


TEXT = Rule(lambda value: isinstance(value, str) and value != "", "a text that is not empty")
OPTIONS = Rule(_is_plain, "a mapping of names to numbers, texts, lists and the like, which JSON can hold")
BOOL = Rule(lambda value: isinstance(value, bool), "True or False")
