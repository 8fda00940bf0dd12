"""`condconv demo`: a static network against its CondConv twin on embedded digits."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.output import path_line
from condconv.cli.parsing import Option
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
    for flag, rule, default, text in (
        ("--seeds", whole(1, 1000), 3, "number of seeds; each trains both networks (default: %(default)s)"),
        ("--epochs", whole(1), None, "epochs per run (default: what takes about three minutes in all)"),
    ):
        parser.add_argument(flag, action=Option, rule=rule, default=default, help=text)
    parser.add_argument(
        "-o",
        "--out",
        action=Option,
        rule=PATH,
        default="runs/demo",
        help="directory for the results (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print the table."""
    from condconv.lab.experiments import DemoConfig, run_demo

    epochs = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    config = DemoConfig(out=arguments.out, seeds=arguments.seeds, **epochs)
    result = run_demo(config, progress=not arguments.quiet, say=_silent if arguments.quiet else _say)
    print(f"\n{result.table}\n\n{result.verdict}\n")
    for path in result.files:
        print(f"  {path_line(path)}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    pass
