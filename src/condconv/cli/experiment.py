"""`condconv experiment`: repeats an experiment of the paper on your data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condconv.cli import child
from condconv.cli.output import path_line
from condconv.cli.parsing import add_option
from condconv.cli.settings import add_settings, given_settings, make_recipe, over_recipe
from condconv.errors import UsageError, command_line, few, shown
from condconv.lab.config import TrainConfig
from condconv.lab.rules import EXPERTS, PATH, TEXT, WIDTH, one_of, whole

if TYPE_CHECKING:
    from condconv.lab.experiments import Experiment

_OWN = ("model", "out", "seed")  # settings of a run that the experiment decides
_NAMES = (
    "experts-width",
    "plug-in",
    "begin-layer",
    "routing",
    "ensembles",
    "starts",
    "compact",
    "methods",
    "detection",
)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser; it has the settings of `condconv train` as options too."""
    parser = subparsers.add_parser(
        "experiment",
        help="repeat an experiment, most of them the paper's, on your data",
        description="Trains the networks of one experiment, all with the same settings, and writes one table and one "
        "plot with the paper's figures next to yours. Finished runs are kept: the same command resumes where it "
        "stopped; with --seeds 5 it adds two seeds to three.",
        argument_default=argparse.SUPPRESS,
    )
    add_option(parser, "name", one_of(*_NAMES), "the experiment")
    add_option(parser, "--seeds", whole(1, 1000), "runs of each network", default=3)
    add_option(parser, "--jobs", whole(1, 1024), "runs at the same time, each in its own process", default=1)
    given = {"default": None}
    text = "width of MobileNetV1 in percent, three digits (default: the paper's)"
    add_option(parser, "--width", WIDTH, text, **given)
    add_option(parser, "--num-experts", EXPERTS, "experts per layer (default: the paper's)", **given)
    text = (
        "how experts start: each with its own random kernel, or as copies of the static network's kernel that differ "
        "a little (default: the networks' own)"
    )
    add_option(parser, "--init", one_of("random", "same_output"), text, **given)
    add_option(parser, "--run", TEXT, "do only this run, named as in --list", dest="one", metavar="RUN", **given)
    several = {"nargs": "+", **given}
    add_option(parser, "--widths", WIDTH, "experts-width: widths to train", metavar="WIDTH", **several)
    add_option(parser, "--experts", EXPERTS, "experts-width, plug-in: numbers of experts", metavar="E", **several)
    add_option(
        parser,
        "--networks",
        TEXT,
        "plug-in, compact, methods: static networks to convert, or families of small ones",
        metavar="NAME",
        **several,
    )
    text = "do only these rows, named as in the table; rows that were done before stay in it"
    add_option(parser, "--arms", TEXT, text, metavar="ROW", **several)
    for flag, text in (
        (
            "--control",
            "also train each network with one mixture of experts for all images, to measure what routing gains",
        ),
        ("--list", "print the command of each run, for a cluster, and exit"),
        ("--quiet", "no progress bar"),
    ):
        parser.add_argument(flag, action="store_true", default=False, help=text)
    add_option(parser, "-o --out", PATH, "directory of all experiments", default="runs/experiments")
    add_settings(parser, leave_out=_OWN)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the runs that are not done yet, write table and plot, and print the table.

    Returns:
        0, or 1 if a run failed.
    """
    from condconv.lab.experiments import execute, list_runs, run_all, write_tables

    settings = _settings(arguments)
    experiment = _experiment(arguments, settings)
    every = list_runs(experiment, settings, arguments.out, arguments.seeds)
    runs = _chosen(every, arguments.arms)
    if arguments.one is not None:
        names = {each.name: each for each in runs}
        if arguments.one not in names:
            raise UsageError(f"`--run` must be one that --list names, got {shown(arguments.one)}: such as {few(names)}")
        record = execute(names[arguments.one], progress=not arguments.quiet)
        print(f"{arguments.one}: {100 * record.score:.2f} %, kept in {path_line(names[arguments.one].path)}")
        return 0
    given = [each for each in arguments.argv if each != "--list"]
    if arguments.list:
        for each in runs:
            print(command_line(["condconv", *given, "--run", each.name]))
        return 0
    outcome = run_all(
        runs,
        lambda each: [*child.command(), *given, "--run", each.name],
        jobs=arguments.jobs,
        progress=not arguments.quiet,
    )
    finished = tuple(found for each in every if (found := each.record()) is not None)
    outcome = replace(outcome, records=finished)
    out = Path(arguments.out) / experiment.name
    table, files = write_tables(experiment, outcome, _conditions(settings), out, ["condconv", *given])
    print(f"\n{table}\n")
    for path in files:
        print(f"  {path_line(path)}")
    for name, reason in outcome.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _chosen(runs: list[Any], labels: Sequence[str] | None) -> list[Any]:
    """Return the runs of some rows of the table, or all of them."""
    known = dict.fromkeys(each.arm.label for each in runs)
    for label in labels or ():
        if label not in known:
            raise UsageError(f"`--arms` must be rows of the table, got {shown(label)}: they are {few(known, most=20)}")
    return [each for each in runs if labels is None or each.arm.label in labels]


def _settings(arguments: argparse.Namespace) -> TrainConfig:
    """Return the settings that all runs share; the experiment decides the others."""
    given = given_settings(arguments)
    if "data" not in given:
        raise UsageError("`--data` must be given, got nothing: see condconv experiment --help")
    own = {"model": "-", "out": "-"}
    if arguments.recipe is None:
        return TrainConfig(**{**given, **own})
    recipe = make_recipe(arguments.recipe, given["data"])
    return replace(recipe, **{**over_recipe(recipe, given), **own})


def _experiment(arguments: argparse.Namespace, settings: TrainConfig) -> Experiment:
    from condconv.lab.experiments import create_experiment, size_of

    names = ("width", "num_experts", "widths", "experts", "networks", "init", "control")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.name == "ensembles":  # its networks are as wide as their cost on these images allows
        options["size"] = size_of(settings)
    return create_experiment(arguments.name, **options)


def _conditions(settings: TrainConfig) -> str:
    """Return a sentence with the settings of all runs that are not the default."""
    default = TrainConfig(data="-", model="-", out="-")
    pairs = [(each.name, getattr(settings, each.name), getattr(default, each.name)) for each in fields(TrainConfig)]
    words = [f"{name} {ours}" for name, ours, theirs in pairs if ours != theirs and name != "workers"]
    return f"Settings of every run: {', '.join(words) or 'the defaults'}."
