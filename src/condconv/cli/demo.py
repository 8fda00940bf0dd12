"""`condconv demo`: compares a static network with its CondConv twin on embedded digits."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from condconv.cli.output import path_line
from condconv.cli.parsing import add_option
from condconv.lab.rules import PATH, whole


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "demo",
        help="compare a static network with its CondConv twin (about three minutes, no download)",
        description="Trains MobileNetV1 and its CondConv twin on the 8x8 digits of scikit-learn from the same "
        "seeds, and shows what CondConv gained: one table, the learning curves, and a picture of the routing. "
        "Finished runs in the directory are kept, so an interrupted demo resumes where it stopped.",
    )
    add_option(parser, "--seeds", whole(1, 1000), "number of seeds; each trains both networks", default=3)
    text = "epochs of each run (default: as many as take about three minutes in total)"
    add_option(parser, "--epochs", whole(1), text)
    add_option(parser, "-o --out", PATH, "directory for the results", default="runs/demo")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print the table."""
    from condconv.lab.experiments import DemoConfig, run_demo

    epochs = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    config = DemoConfig(out=arguments.out, seeds=arguments.seeds, **epochs)
    result = run_demo(
        config, progress=not arguments.quiet, say=(lambda line: None) if arguments.quiet else partial(print, flush=True)
    )
    print(f"\n{result.table}\n\n{result.verdict}\n")
    for path in result.files:
        print(f"  {path_line(path)}")
    return 0
