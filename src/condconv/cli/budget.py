"""`condconv budget`: the members of an elastic network, and the chosen one as a checkpoint."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from condconv.cli.output import path_line
from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT, add_max_images, add_reading_options, reading_of
from condconv.errors import UsageError
from condconv.lab.rules import PATH, whole

if TYPE_CHECKING:
    from condconv.lab.bench.members import MemberTime
    from condconv.lab.saved import Budget

_MOST = 1_000_000_000_000
_REPETITIONS = 15
_OPTIONS = {"num_experts": "--experts", "rank": "--rank", "max_bytes": "--max-bytes", "max_madds": "--max-madds"}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "budget",
        help="accuracy and cost of the members of an elastic network",
        description="Scores each member of a network trained with 'condconv train --elastic': the network with the "
        "first k experts, or ranks, of each layer, for every k; with 0 it is static. Each member's batch-norm "
        "statistics are estimated over training images, augmented as in training. Times are those of random images, "
        "over the static member's, measured in turn: median and quartiles. With -o and a budget, the largest member "
        "within it is written to a checkpoint that holds only what it needs, for evaluate, report and export.",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    add_option(parser, "--experts", whole(0, 4096), "write the member of at most this many experts")
    add_option(parser, "--rank", whole(0, 65_536), "write the member of at most this rank, for experts=shared")
    add_option(parser, "--max-bytes", whole(1, _MOST), "write the largest member of at most this many bytes")
    add_option(parser, "--max-madds", whole(1, _MOST), "write the largest member of at most this many multiply-adds")
    add_option(parser, "-o --out", PATH, "file to write the member to, not the checkpoint itself")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    text = "draw accuracy against bytes, multiply-adds and time"
    add_option(parser, "--plot", PATH, text, metavar="FILE.png|svg")
    text = "measurements of each time; 0 for no times"
    add_option(parser, "--repetitions", whole(0, 10_000), text, default=_REPETITIONS, metavar="N")
    add_reading_options(parser)
    add_max_images(parser, default=10_000)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table of the members, draw them, and write the chosen one."""
    from condconv.lab.saved import score_members

    if arguments.plot is not None:
        from condconv.lab.experiments import check_picture

        check_picture(arguments.plot)
    try:
        found = score_members(
            arguments.checkpoint,
            arguments.data,
            out=arguments.out,
            num_experts=arguments.experts,
            rank=arguments.rank,
            max_bytes=arguments.max_bytes,
            max_madds=arguments.max_madds,
            data_dir=arguments.data_dir,
            reading=reading_of(arguments),
            force=arguments.force,
        )
    except UsageError as error:
        raise UsageError(_in_options(str(error))) from error
    times = _time(found, arguments.repetitions) if arguments.repetitions else []
    _print_table(found, times)
    if not found.elastic:
        print("note: trained without --elastic, so the smaller members have not learned to work alone")
    if arguments.out is not None and found.chosen is not None:
        print(f"member   {found.chosen.number} {found.chosen.unit}")
        print(f"written  {path_line(arguments.out)}")
    if arguments.plot is not None:
        _plot(arguments.plot, found, times)
        print(f"plot     {path_line(arguments.plot)}")
    return 0


def _in_options(message: str) -> str:
    """Return a message with the options that were given in the place of the arguments that they became."""
    for name, option in _OPTIONS.items():
        message = message.replace(f"`{name}`", f"`{option}`")
    return message


def _time(found: Budget, repetitions: int) -> list[dict[int, MemberTime]]:
    """Return the times of the members by the number of images."""
    from condconv.lab.bench.members import time_members
    from condconv.lab.bench.timing import keep_freed_memory

    keep_freed_memory()
    return time_members([each.network for each in found.members], found.image_shape, repetitions)


def _print_table(found: Budget, times: list[dict[int, MemberTime]]) -> None:
    import torch

    from condconv.counting import format_table

    batches = list(times[0]) if times else []
    header = (found.members[0].member.unit, "params", "bytes", "MADDs", "top-1", *(f"time, {each}" for each in batches))
    rows = []
    for index, scored in enumerate(found.members):
        each = scored.member
        cost = (f"{each.params:,}", f"{each.bytes:,}", f"{each.madds:,}", f"{100 * scored.scores.top1:.2f} %")
        rows.append((str(each.number), *cost, *(_ratio(times[index][batch]) for batch in batches)))
    print(format_table(header, rows))
    if times:
        static = " and ".join(f"{times[0][batch].milliseconds:.2f} ms for {batch}" for batch in batches)
        device = next(found.members[0].network.parameters()).device.type
        print(f"time: over that of 0 {header[0]}, {static} images; {device}, threads: {torch.get_num_threads()}")


def _ratio(time: MemberTime) -> str:
    return f"{time.ratio.median:.2f} [{time.ratio.low:.2f} {time.ratio.high:.2f}]"


def _plot(path: str, found: Budget, times: list[dict[int, MemberTime]]) -> None:
    from condconv.lab.experiments import Curve, plot_members

    all_members = [each.member for each in found.members]
    unit = all_members[0].unit
    curves = [
        Curve("kilobytes", {"bytes": [each.bytes / 1e3 for each in all_members]}, {}),
        Curve("million multiply-adds", {"MADDs": [each.madds / 1e6 for each in all_members]}, {}),
    ]
    if times:
        ratios = {f"batch {batch}": [each[batch].ratio for each in times] for batch in times[0]}
        curves.append(
            Curve(
                f"time, over that of 0 {unit}",
                {name: [each.median for each in spreads] for name, spreads in ratios.items()},
                {name: [(each.low, each.high) for each in spreads] for name, spreads in ratios.items()},
            )
        )
    accuracy = [each.scores.top1 for each in found.members]
    title = f"Members of one network, by their number of {unit}"
    plot_members(path, [each.number for each in all_members], accuracy, curves, title=title)
