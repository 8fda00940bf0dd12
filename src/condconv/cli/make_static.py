"""`condconv make-static`: makes conditional layers of a trained network ordinary ones."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.output import change_of, path_line
from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT, add_max_images, add_reading_options, reading_of
from condconv.lab.rules import PATH, TEXT


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "make-static",
        help="make layers static if their routing hardly matters",
        description="Gives each named layer the kernel that its mean routing weights mix, and writes the network to "
        "a new checkpoint for evaluate, report and export. The mean is over the training images, "
        "without augmentation; the accuracy before and after is on the validation images. 'condconv report' "
        "shows which layers to choose.",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    text = "names of layers or patterns, with commas between: 'blocks.3.*,conv_head'"
    add_option(parser, "--layers", TEXT, text, required=True)
    add_option(parser, "--skip", TEXT, "layers of these to leave conditional")
    add_option(parser, "-o --out", PATH, "file to write, not the checkpoint itself", required=True)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--no-evaluate", action="store_true", help="do not measure the accuracy")
    add_reading_options(parser, unlabelled=True)
    add_max_images(parser, default=10_000)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint, and print its size and accuracy next to those before."""
    from condconv.lab.saved import make_checkpoint_static

    done = make_checkpoint_static(
        arguments.checkpoint,
        arguments.out,
        arguments.layers,
        arguments.data,
        skip=arguments.skip,
        data_dir=arguments.data_dir,
        reading=reading_of(arguments),
        force=arguments.force,
        evaluate=not arguments.no_evaluate,
    )
    print(f"static now   {', '.join(done.layers)}")
    print(f"conditional  {done.conditional_left} layers left")
    print(f"parameters   {done.params_before / 1e6:.2f}M -> {done.params_after / 1e6:.2f}M")
    print(f"mean over    {done.images} images")
    if not arguments.no_evaluate:
        print(f"top-1        {change_of(done.before, done.after)}")
    print(f"written      {path_line(arguments.out)}")
    return 0
