"""`condconv budget`: the members of an elastic network, and the chosen one as a checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.output import path_line
from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT, add_max_images, add_reading_options, reading_of
from condconv.lab.rules import PATH, whole

_MOST = 1_000_000_000_000


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "budget",
        help="accuracy and cost of the members of an elastic network",
        description="Scores each member of a network trained with 'condconv train --elastic': the network with the "
        "first k experts of each layer, for every k; with 0 it is static. Each member's batch-norm statistics are "
        "estimated over training images. With -o and a budget, the largest member within it is written to a "
        "checkpoint that holds only what it needs, for evaluate, report and export.",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    add_option(parser, "--experts", whole(0, 4096), "write the member of at most this many experts")
    add_option(parser, "--max-bytes", whole(1, _MOST), "write the largest member of at most this many bytes")
    add_option(parser, "--max-madds", whole(1, _MOST), "write the largest member of at most this many multiply-adds")
    add_option(parser, "-o --out", PATH, "file to write the member to, not the checkpoint itself")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    add_reading_options(parser)
    add_max_images(parser, default=10_000)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table of the members, and write the chosen one."""
    from condconv.counting import format_table
    from condconv.lab.saved import score_members

    found = score_members(
        arguments.checkpoint,
        arguments.data,
        out=arguments.out,
        num_experts=arguments.experts,
        max_bytes=arguments.max_bytes,
        max_madds=arguments.max_madds,
        data_dir=arguments.data_dir,
        reading=reading_of(arguments),
        force=arguments.force,
    )
    rows = [
        (str(each.num_experts), f"{each.params:,}", f"{each.bytes:,}", f"{each.madds:,}", f"{100 * scores.top1:.2f} %")
        for each, scores in ((scored.member, scored.scores) for scored in found.members)
    ]
    print(format_table(("experts", "params", "bytes", "MADDs", "top-1"), rows))
    if not found.elastic:
        print("note: trained without --elastic, so the smaller members have not learned to work alone")
    if arguments.out is not None and found.chosen is not None:
        print(f"member   {found.chosen.num_experts} experts")
        print(f"written  {path_line(arguments.out)}")
    return 0
