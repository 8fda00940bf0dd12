"""`condconv report`: what the routing of a trained network learned, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from condconv.cli.output import path_line
from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT, add_max_images, add_reading_options, reading_of
from condconv.lab.rules import PATH, whole


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "report",
        help="show what the routing of a trained network learned",
        description="Writes one self-contained page: how classes use the "
        "experts of each layer, the images and classes with the highest weights, what the routing gains, and "
        "which layers may be made static (condconv make-static).",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    add_reading_options(parser, unlabelled=True)
    add_max_images(parser)
    text = "images, at most, for measuring each single layer"
    add_option(parser, "--layer-images", whole(1, 1_000_000_000), text, default=10_000)
    text = "file to write: .html, or .json for RoutingReport.load"
    add_option(parser, "-o --out", PATH, text, default="report.html")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print its path, with the figures that matter most."""
    from condconv.analysis import headline, verdicts
    from condconv.lab.saved import Inspection, inspect_checkpoint

    out = Path(arguments.out)
    Inspection.check_can_save(out)  # before the work begins, not after it
    found = inspect_checkpoint(
        arguments.checkpoint,
        arguments.data,
        data_dir=arguments.data_dir,
        layer_images=arguments.layer_images,
        reading=reading_of(arguments),
    )
    found.save(out)
    print(headline(found.report))
    for each in found.report.interventions:
        if not each.routings:
            score = f"{100 * each.agreement:6.2f} % predicted as before" if each.top1 is None else f"{each.top1:8.2%}"
            print(f"{each.name:8} {score}")
    if found.command is not None:
        print(f"advised: {found.command}")
    undecided = [each for each in verdicts(found.report) if each.kind == "few"]
    if undecided:
        most = max(undecided, key=lambda each: each.images_needed or 0)
        print(
            f"undecided: {len(undecided)} of {len(found.report.routings)} routing functions, on too few images, "
            f"{most.images}: it takes about {most.images_needed} (--layer-images, and as many in --data)"
        )
    print(f"report: {path_line(out)}")
    return 0
