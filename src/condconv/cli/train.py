"""`condconv train`: trains a named network on an image folder or on the embedded digits."""

from __future__ import annotations

import argparse
import ast
import os
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from condconv.errors import UsageError
from condconv.train import TrainConfig

_TYPES = {"str": str, "int": int, "float": float}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser; its options are the fields of the training settings."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on a folder of images",
        description="Trains a network. The run is saved after each epoch; the same command goes on with an "
        "interrupted run, with the same result as if it had not been interrupted. Several GPUs: "
        "'accelerate launch -m condconv train ...'.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for each in fields(TrainConfig):
        _add_option(parser, each)
    parser.add_argument("--quiet", action="store_true", default=False, help="no progress bar")
    parser.set_defaults(run=run)


def _add_option(parser: argparse.ArgumentParser, option: Field[Any]) -> None:
    flag, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
    kind = str(option.type).removesuffix(" | None")
    if option.name == "model_options":
        parser.add_argument("--model-option", dest="model_options", action="append", metavar="NAME=VALUE", help=text)
    elif option.name == "out":
        parser.add_argument("-o", flag, help=f"{text} (default: runs/DATA-MODEL-seedSEED)")
    elif kind == "bool":
        parser.add_argument(flag, action="store_true", help=text)
    elif option.name in ("data", "model"):
        parser.add_argument(flag, required=True, help=text)
    else:
        default = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(flag, type=_TYPES[kind], choices=option.metadata["choices"], help=text + default)


def run(arguments: argparse.Namespace) -> int:
    """Train and prints where the result is."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "quiet")}
    given["model_options"] = dict(_parse_option(each) for each in given.get("model_options", []))
    data = Path(given["data"]).resolve().name if given["data"] != "digits" else "digits"
    given.setdefault("out", f"runs/{data}-{given['model']}-seed{given.get('seed', 0)}")
    config = TrainConfig(**given)

    from condconv.train import train

    result = train(config, progress=not arguments.quiet)
    if os.environ.get("RANK", "0") == "0":  # set by every launcher of several processes: one of them speaks
        last, best = result.metrics[-1], result.best_epoch
        skipped = sum(each.skipped_images for each in result.metrics)
        print(f"epoch {last.epoch}: {100 * last.val_top1:.2f} % of the validation images right")
        print(f"best, epoch {best.epoch}: {100 * best.val_top1:.2f} %, saved in {result.best}")
        print(
            f"training speed: {result.train_images_per_second:.0f} images/s; all epochs: {result.out / 'metrics.csv'}"
        )
        if skipped:
            print(f"unreadable images left out: {skipped} over all epochs")
    return 0


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"`--model-option` must be NAME=VALUE, got {text!r}, for example output_stride=8")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, such as a name, needs no quotes
