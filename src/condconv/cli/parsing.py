"""A parser whose messages have the four parts of all others: argument, rule, value and remedy."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from condconv.errors import UsageError, shown
from condconv.lab.rules import Rule

# Messages of argparse, and those of this package for them.
_WORDS = (
    (r"the following arguments are required: (?P<name>.+)", "`{name}` must be given, got nothing"),
    (r"one of the arguments (?P<name>.+) is required", "one of `{name}` must be given, got nothing"),
    (r"argument (?P<name>.+?): expected .*", "`{name}` must have a value, got nothing"),
    (r"argument (?P<name>.+?): ignored explicit argument (?P<value>.+)", "`{name}` must have no value, got {value}"),
    (
        r"argument (?P<name>.+?): not allowed with argument (?P<other>.+)",
        "`{name}` must not be combined with `{other}`, got both",
    ),
    (
        r"argument (?P<name>.+?): invalid choice: (?P<value>.+) \(choose from (?P<choices>.+)\)",
        "`{name}` must be one of {choices}, got {value}",
    ),
)


class Parser(argparse.ArgumentParser):
    """Raises errors instead of exiting, and accepts no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse found, in the words of this package.

        Raises:
            UsageError: Always.
        """
        for pattern, words in _WORDS:
            match = re.fullmatch(pattern, message, re.DOTALL)
            if match is not None:
                message = words.format(**{kind: _in_words(kind, text) for kind, text in match.groupdict().items()})
                break
        raise UsageError(f"{message}: see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # argparse itself drops errors of writing

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse arguments that the command does not have, with the command's name.

        Raises:
            UsageError: An argument is wrong, missing or unknown.
        """
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            word = rest[0].partition("=")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"`{self.prog}` must have known arguments only, got {shown(rest[0])}: {meant}see {self.prog} --help"
            )
        return found, rest


class Option(argparse.Action):
    """An argument that its rule reads and checks.

    Args:
        rule: Of each value.
        repeat: Whether the option may be given several times, one value each.
        **options: As `argparse.Action` takes them.
    """

    def __init__(self, *, rule: Rule, repeat: bool = False, **options: Any) -> None:
        if rule.choices and options.get("metavar") is None:
            options["metavar"] = f"{{{','.join(map(str, rule.choices))}}}"
        super().__init__(**options)
        self.rule = rule
        self._repeat = repeat

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Set the value, or add it to earlier ones."""
        if values is None:  # of an argument that may be left out: its default is there already
            return
        name = self.option_strings[-1] if self.option_strings else self.dest
        if isinstance(values, str):
            read: Any = self.rule.parse(name, values)
        else:
            read = [self.rule.parse(name, each) for each in values]
        before = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*before, read] if self._repeat else read)


def add_option(parser: argparse._ActionsContainer, names: str, rule: Rule, text: str, **options: Any) -> None:
    """Add an argument that its rule reads and checks.

    Args:
        parser: The parser, or a group of it.
        names: Of the argument, with spaces between: `"-o --out"`.
        rule: Of each value.
        text: Its help, to which a default is added.
        **options: As `Option` takes them.
    """
    if options.get("default") not in (None, ""):
        text += " (default: %(default)s)"
    parser.add_argument(*names.split(), action=Option, rule=rule, help=text, **options)


def _in_words(kind: str, text: str) -> str:
    """Return a part of a message of argparse in the form that messages of this package have."""
    if kind == "value":
        return shown(text[1:-1])  # it comes in quotes
    # Of `-o/--out` the long name; of choices the names without quotes.
    return re.sub(r"-\w/(?=--)", "", text).replace("'", "")
