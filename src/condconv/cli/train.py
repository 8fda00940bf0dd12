"""`condconv train`: trains a named network on your images, or by a recipe of the paper."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condconv.cli.output import path_line
from condconv.cli.settings import add_settings, given_settings, make_recipe, over_recipe
from condconv.errors import UsageError
from condconv.lab.config import TrainConfig, is_named

if TYPE_CHECKING:
    from condconv.lab.saved import TrainResult


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser; its options are the fields of the training settings."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on images",
        description="Trains a network. The run is saved after each epoch; the same command resumes an "
        "interrupted run, and gives the same result as an uninterrupted one. For several GPUs: "
        "'accelerate launch -m condconv train ...'.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        default=False,
        help="no progress bar, and no line per epoch",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train and print where the result is."""
    config = _config(arguments)

    from condconv.lab.train import train

    result = train(config, progress=not arguments.quiet)
    if os.environ.get("RANK", "0") == "0":  # set by every launcher of several processes: only one prints
        _report(config, result)
    return 0


def _config(arguments: argparse.Namespace) -> TrainConfig:
    given = given_settings(arguments)
    needed = ("data", "model") if arguments.recipe is None else ("data",)
    missing = [f"--{name}" for name in needed if name not in given]
    if missing:
        raise UsageError(f"`{', '.join(missing)}` must be given, got nothing: see condconv train --help")
    if arguments.recipe is None:
        return TrainConfig(**{"out": _default_out(given), **given})
    recipe = make_recipe(arguments.recipe, *(given[name] for name in ("data", "model") if name in given))
    given = over_recipe(recipe, given)
    given["model"] = recipe.model
    return dataclasses.replace(recipe, **{"out": _default_out(given), **given})


def _default_out(given: dict[str, Any]) -> str:
    path = given["data"]
    data = path.strip("/").replace("/", "-") if is_named(path) else Path(path).resolve().name
    return f"runs/{data}-{given['model']}-seed{given.get('seed', 0)}"


def _report(config: TrainConfig, result: TrainResult) -> None:
    if unusable := result.unusable:
        raise UsageError(
            f"`out` must hold all files of its finished run as it wrote them, got {result.out} with "
            f"{' and '.join(unusable)} missing or damaged: restore them, or train again in another --out"
        )
    csv = result.out / "metrics.csv"
    last, best = result.metrics[-1], result.best_epoch
    skipped = sum(each.skipped_images for each in result.metrics)
    print(f"epoch {last.epoch}: {100 * last.val_top1:.2f} % of the validation images are right")
    print(f"best, epoch {best.epoch}: {100 * best.val_top1:.2f} %, saved in {path_line(result.best)}")
    print(f"training speed: {result.train_images_per_second:.0f} images/s; all epochs: {path_line(csv)}")
    if last.epoch < config.epochs:
        print(f"stopped early: no better accuracy for {config.patience} epochs")
    if result.routing_note is not None:
        print(result.routing_note)
    if skipped:
        print(f"unreadable images left out: {skipped} over all epochs")
