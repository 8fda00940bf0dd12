"""`condconv evaluate`: accuracy of a checkpoint on images."""

from __future__ import annotations

import argparse
import os
from typing import Any

from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT, add_reading_options, reading_of
from condconv.lab.rules import PATH


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a trained network",
        description="Scores a checkpoint of 'condconv train' on images, at the size it was trained for.",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    add_reading_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the scores."""
    from condconv.lab.saved import evaluate_checkpoint

    result = evaluate_checkpoint(
        arguments.checkpoint, arguments.data, data_dir=arguments.data_dir, reading=reading_of(arguments)
    )
    if os.environ.get("RANK", "0") != "0":  # set by every launcher of several processes: only one prints
        return 0
    print(f"images   {result.images}")
    print(f"top-1    {100 * result.top1:.2f} %")
    if result.top5 is not None:
        print(f"top-5    {100 * result.top5:.2f} %")
    print(f"loss     {result.loss:.4f}")
    print(f"speed    {result.images_per_second:.0f} images/s, reading included")
    if result.skipped_images:
        print(f"skipped  {result.skipped_images} that could not be read")
    return 0
