"""`condconv models`: the networks, their cost, and the paper's numbers."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.parsing import add_option
from condconv.lab.rules import Rule

_PATTERN = Rule(lambda value: True, "a pattern of names", "leave it out for all names")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "models",
        help="list the networks",
        description="Lists the networks with their experts (how many, and of which store by default), parameters and "
        "multiply-adds (MADDs: convolutions, routing and "
        "mixing of kernels; one image of 224 pixels, 1000 classes, or of 32 pixels, 10 classes for small_*). For "
        "networks of the paper it adds the paper's MADDs, how far these differ, and the paper's ImageNet top-1. The "
        "paper's tool also counts element-wise operations and pooling.",
    )
    add_option(parser, "pattern", _PATTERN, "list only names that match, such as 'resnet*'", nargs="?")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from condconv.models import list_models
    from condconv.models.costs import COSTS
    from condconv.models.names import parse_name
    from condconv.models.paper import ROWS
    from condconv.nn.choice import choose_named

    every = {name: name for name in list_models()}
    names = [*choose_named(every, arguments.pattern, argument="pattern", kind="names of networks")]
    width = max(map(len, names))

    def line(name: str, *cells: str) -> None:
        print(name.ljust(width), cells[0].ljust(8), *map(str.rjust, cells[1:], (9, 9, 12, 14, 12)))

    line("name", "experts", "params", "MADDs", "paper MADDs", "MADDs / paper", "paper top-1")
    for name in names:
        paper, total, parsed = ROWS.get(name), COSTS[name], parse_name(name)
        printed = None if paper is None else paper.madds
        line(
            name,
            "-" if parsed.num_experts is None else f"{parsed.num_experts} {parsed.family.experts}",
            _amount(total.params),
            _amount(total.madds),
            "-" if printed is None else f"{printed:.0f}M",
            "-" if printed is None else f"{total.madds / 1e6 / printed - 1:+.1%}",
            "-" if paper is None else f"{paper.top1:.1f} %",
        )
    return 0


def _amount(value: float) -> str:
    return f"{value / 1e6:.1f}M" if value >= 1e5 else f"{value / 1e3:.1f}k"
