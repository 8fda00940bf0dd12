"""Options of the command line that are the settings of a training run."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Any

from condconv.errors import UsageError
from condconv.train import TrainConfig

_TYPES: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
ENTRIES = {each.name: each.name.removesuffix("s") for each in fields(TrainConfig) if "Mapping" in str(each.type)}
"""Settings that are mappings, with the name of one entry: they are given entry by entry."""

_RECIPE_HELP = (
    "settings for a network of the paper on ImageNet, the authors' where published, which the others given replace: "
    "efficientnet_b0, mnasnet_a1, mobilenet_v1, mobilenet_v2 or resnet_50"
)


def add_settings(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Add an option for each setting, in the groups of `TrainConfig`, and `--recipe`.

    Args:
        parser: Its `argument_default` is `argparse.SUPPRESS`: what is not given is not there.
        leave_out: Names of settings that get no option.
    """
    parser.add_argument("--recipe", metavar="NAME", default=None, help=_RECIPE_HELP)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in fields(TrainConfig):
        if each.name not in leave_out:
            title = each.metadata["group"]
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add_option(groups[title], each)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, by name.

    Raises:
        UsageError: An entry of a mapping is not NAME=VALUE.
    """
    given = {each.name: getattr(arguments, each.name) for each in fields(TrainConfig) if hasattr(arguments, each.name)}
    for name, entry in ENTRIES.items():
        if name in given:
            given[name] = dict(_parse_entry(each, entry) for each in given[name])
    return given


def make_recipe(name: str, *arguments: str) -> TrainConfig:
    """Return the settings of a recipe.

    Args:
        name: A key of `condconv.experiments.recipes.RECIPES`.
        *arguments: Of the recipe: the data, and a network.

    Raises:
        UsageError: There is no such recipe.
    """
    from condconv.experiments.recipes import RECIPES  # needs the extra, which --help must not

    if name not in RECIPES:
        raise UsageError(f"`--recipe` must be one of {', '.join(sorted(RECIPES))}, got {name!r}")
    return RECIPES[name](*arguments)


def over_recipe(recipe: TrainConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that replace a recipe's: those that were given, mappings entry by entry."""
    return {name: {**getattr(recipe, name), **value} if name in ENTRIES else value for name, value in given.items()}


def _add_option(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    flag, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
    kind, optional = str(option.type).removesuffix(" | None"), str(option.type).endswith("| None")
    if option.name in ENTRIES:
        flag = f"--{ENTRIES[option.name].replace('_', '-')}"
        group.add_argument(flag, dest=option.name, action="append", metavar="NAME=VALUE", help=text)
    elif kind == "bool":
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif option.name == "out":
        group.add_argument("-o", flag, help=f"{text} (default: runs/DATA-MODEL-seedSEED)")
    else:
        known = option.default not in (None, dataclasses.MISSING)
        choices = option.metadata["rule"].choices
        group.add_argument(
            flag,
            type=_or_none(_TYPES[kind]) if optional else _TYPES[kind],
            choices=((*choices, None) if optional else choices) if choices else None,
            metavar=f"{{{','.join(map(str, choices))}}}" if choices else option.name.rpartition("_")[2].upper(),
            help=text + (f" (default: {option.default})" if known else ""),
        )


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Read `none` as None, which takes a value of a recipe's back."""

    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    parse.__name__ = getattr(kind, "__name__", "value")  # argparse names the type in its message
    return parse


def _parse_entry(text: str, flag: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"`--{flag.replace('_', '-')}` must be NAME=VALUE, got {text!r}, for example output_stride=8")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value  # a word, such as a name, needs no quotes
