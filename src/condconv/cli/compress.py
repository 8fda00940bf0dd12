"""`condconv compress`: makes one kernel and a small routed part of the trained experts of each layer."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.output import change_of, path_line
from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT, add_max_images, add_reading_options, reading_of
from condconv.lab.rules import PATH, TEXT, number, or_none, whole


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "compress",
        help="make trained experts smaller: one kernel and a small routed part per layer",
        description="Fits one kernel and a small routed part to the trained experts of each layer, weighted by the "
        "routing weights of the training images, and writes the network to a new checkpoint for evaluate, report and "
        "export. The table shows each layer's bytes and the relative error of its mixed kernels. With --repair-epochs "
        "the routed parts and the routing then learn to give what the network gave before.",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    add_option(parser, "-o --out", PATH, "file to write, not the checkpoint itself", required=True)
    text = "what layers get: 'shared(outputs=R)' or 'shared(kernels=K)'"
    add_option(parser, "--experts", TEXT, text, default="shared(outputs=16)")
    text = "the same for layers with groups, depthwise ones too; 'none' leaves them as they are"
    add_option(parser, "--grouped", or_none(TEXT), text, default="shared(kernels=2)")
    add_option(parser, "--layers", TEXT, "names of layers or patterns, with commas between (default: all)")
    add_option(parser, "--skip", TEXT, "layers of these to leave as they are")
    text = "largest relative error of a layer's mixed kernels"
    add_option(parser, "--max-error", number(0, open_below=True), text, default=0.3)
    text = "passes over the images in which the routed parts and the routing are trained"
    add_option(parser, "--repair-epochs", whole(0), text, default=0)
    add_option(parser, "--repair-lr", number(0, open_below=True), "peak learning rate of the repair", default=0.001)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--no-evaluate", action="store_true", help="do not measure the accuracy")
    add_reading_options(parser, unlabelled=True)
    add_max_images(parser, default=10_000)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint, and print the layers, and the accuracy next to that before."""
    from condconv.lab.saved import compress_checkpoint

    done = compress_checkpoint(
        arguments.checkpoint,
        arguments.out,
        arguments.experts,
        arguments.data,
        grouped=arguments.grouped,
        layers=arguments.layers,
        skip=arguments.skip,
        max_error=arguments.max_error,
        repair_epochs=arguments.repair_epochs,
        repair_lr=arguments.repair_lr,
        data_dir=arguments.data_dir,
        reading=reading_of(arguments),
        force=arguments.force,
        evaluate=not arguments.no_evaluate,
    )
    print(done.report)
    if not arguments.no_evaluate:
        print(f"top-1: {change_of(done.before, done.after)}")
    print(f"written: {path_line(arguments.out)}")
    return 0
