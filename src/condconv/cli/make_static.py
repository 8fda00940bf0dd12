"""`condconv make-static`: makes conditional layers of a trained network ordinary ones."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.output import path_line
from condconv.cli.parsing import Option
from condconv.cli.reading import add_max_images, add_reading_options, reading_of, reading_options
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
    parser.add_argument(
        "checkpoint",
        action=Option,
        rule=PATH,
        help="a best.safetensors or last.safetensors, or what condconv make-static wrote",
    )
    parser.add_argument(
        "--layers",
        action=Option,
        rule=TEXT,
        required=True,
        help="names of layers or patterns, with commas between: 'blocks.3.*,conv_head'",
    )
    parser.add_argument(
        "-o", "--out", action=Option, rule=PATH, required=True, help="file to write, not the checkpoint itself"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--no-evaluate", action="store_true", help="do not measure the accuracy")
    add_reading_options(parser, unlabelled=True)
    add_max_images(parser, default=10_000)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint, and print what it saves and costs."""
    from condconv.lab.saved import make_checkpoint_static

    done = make_checkpoint_static(
        arguments.checkpoint,
        arguments.out,
        [pattern.strip() for pattern in arguments.layers.split(",") if pattern.strip()],
        arguments.data,
        data_dir=arguments.data_dir,
        reading=reading_of(arguments),
        force=arguments.force,
    )
    print(f"static now   {', '.join(done.layers)}")
    print(f"conditional  {done.conditional_left} layers left")
    print(f"parameters   {done.params_before / 1e6:.2f}M -> {done.params_after / 1e6:.2f}M")
    print(f"mean over    {done.images} images")
    if not arguments.no_evaluate:
        _compare(arguments)
    print(f"written      {path_line(arguments.out)}")
    return 0


def _compare(arguments: argparse.Namespace) -> None:
    from condconv.lab.saved.checkpoint import describe_checkpoint
    from condconv.lab.saved.evaluate import evaluate_checkpoint, own_data
    from condconv.lab.saved.inspection import open_images

    checkpoint = describe_checkpoint(arguments.checkpoint)
    data = arguments.data or own_data(arguments.checkpoint, "val")
    if not open_images(checkpoint, data, data_dir=arguments.data_dir, skip=True)[1]:
        print("top-1        not measured: the images have no classes")
        return
    before, after = (
        evaluate_checkpoint(path, data, data_dir=arguments.data_dir, **reading_options(arguments))
        for path in (arguments.checkpoint, arguments.out)
    )
    change = 100 * (after.top1 - before.top1)
    print(
        f"top-1        {100 * before.top1:.2f} % -> {100 * after.top1:.2f} % ({change:+.2f} points, "
        f"{after.images} images)"
    )
