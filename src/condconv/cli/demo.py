"""`condconv demo`: shows what routing brings on embedded digits that are seen under four conditions."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from condconv.cli.output import path_line
from condconv.cli.parsing import add_option
from condconv.lab.rules import PATH, whole

NEXT = "condconv train --data my_images/ --model tf_efficientnet_cc_b0_4e --pretrained --lr 0.0003"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "demo",
        help="show what routing brings on digits under four conditions (a few minutes, no download)",
        description="Trains three small networks from the same seeds on the digits of scikit-learn, each seen plain, "
        "inverted, turned and noisy: a static network, CondConv, and its control, which has the same experts but one "
        "mixture of them for all images. Shows what routing itself brought: one table, the learning curves, and a "
        "picture of which experts are used for what. Finished runs in the directory are kept, so an interrupted demo "
        "resumes where it stopped.",
    )
    add_option(parser, "--seeds", whole(1, 1000), "number of seeds; each trains the three networks", default=4)
    add_option(parser, "--first-seed", whole(0, 1_000_000), "the first of them; another repeats the demo", default=0)
    text = "epochs of each run (default: as many as take two minutes in total)"
    add_option(parser, "--epochs", whole(1), text)
    add_option(parser, "-o --out", PATH, "directory for the results", default="runs/demo")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print the table."""
    from condconv.lab.experiments import DemoConfig, run_demo

    epochs = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    config = DemoConfig(out=arguments.out, seeds=arguments.seeds, first_seed=arguments.first_seed, **epochs)
    result = run_demo(
        config, progress=not arguments.quiet, say=(lambda line: None) if arguments.quiet else partial(print, flush=True)
    )
    print(f"\n{result.table}\n\n{result.verdict}\n")
    for path in result.files:
        print(f"  {path_line(path)}")
    print(f"\nNext, on your own images, with one folder per class in my_images/train/ and my_images/val/:\n\n  {NEXT}")
    return 0
