"""Options of the command line that are the settings of a training run."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from collections.abc import Collection
from dataclasses import Field, fields
from typing import Any

from condconv.cli.parsing import add_option
from condconv.lab.config import TrainConfig
from condconv.lab.rules import Rule, one_of

_RECIPES = (
    "efficientnet_b0",
    "mnasnet_a1",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet_50",
)  # a copy, since --help does not import them
ENTRIES = {each.name: each.name.removesuffix("s") for each in fields(TrainConfig) if "Mapping" in str(each.type)}
"""Settings that are mappings, with the name of one entry: they are given entry by entry."""

_METAVARS = {"cache_images": "GIB", "init_from": "FILE", "clip_grad": "NORM"}
"""Words for values of settings whose names do not end in one."""
_RECIPE_HELP = "start from the settings for a network of the paper on ImageNet; other options override them"


def add_settings(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Add an option for each setting, in the groups of `TrainConfig`, and `--recipe`.

    Args:
        parser: Its `argument_default` must be `argparse.SUPPRESS`: options that are not given have no attribute.
        leave_out: Names of settings that get no option.
    """
    add_option(parser, "--recipe", one_of(*_RECIPES), _RECIPE_HELP, default=None)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in fields(TrainConfig):
        if each.name not in leave_out:
            title = each.metadata["group"]
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add_option(groups[title], each)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, by name."""
    given = {each.name: getattr(arguments, each.name) for each in fields(TrainConfig) if hasattr(arguments, each.name)}
    return {name: dict(value) if name in ENTRIES else value for name, value in given.items()}


def make_recipe(name: str, *arguments: str) -> TrainConfig:
    """Return the settings of a recipe.

    Args:
        name: A key of `condconv.lab.experiments.RECIPES`.
        *arguments: Of the recipe: the data, and a network.
    """
    from condconv.lab.experiments import RECIPES  # needs the extra, which --help must not

    return RECIPES[name](*arguments)


def over_recipe(recipe: TrainConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return the given settings, which replace those of a recipe; mappings are merged entry by entry."""
    return {name: {**getattr(recipe, name), **value} if name in ENTRIES else value for name, value in given.items()}


def _add_option(group: argparse._ArgumentGroup, setting: Field[Any]) -> None:
    flag, text, rule = f"--{setting.name.replace('_', '-')}", setting.metadata["help"], setting.metadata["rule"]
    if setting.name in ENTRIES:
        flag = f"--{ENTRIES[setting.name].replace('_', '-')}"
        add_option(group, flag, _ENTRY, text, dest=setting.name, repeat=True, metavar="NAME=VALUE")
    elif "bool" in str(setting.type):
        state = "on" if setting.default else "off"
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{text} (default: {state})")
    elif setting.name == "out":
        add_option(group, f"-o {flag}", rule, f"{text} (default: runs/DATA-MODEL-seedSEED)", metavar="OUT")
    else:
        known = setting.default not in (None, dataclasses.MISSING)
        metavar = None if rule.choices else _METAVARS.get(setting.name, setting.name.rpartition("_")[2].upper())
        add_option(group, flag, rule, f"{text} (default: {setting.default})" if known else text, metavar=metavar)


def _read_entry(text: str) -> Any:
    name, equals, value = text.partition("=")
    if not name or not equals:
        return text
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value  # a word, such as a name, needs no quotes


_ENTRY = Rule(lambda value: isinstance(value, tuple), "NAME=VALUE", "write it like output_stride=8", _read_entry)
