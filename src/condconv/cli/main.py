"""The command `condconv`: it runs a command, and prints an error as one line with an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import condconv
from condconv.cli import bench, budget, compress, demo, evaluate, experiment, export, make_static, models, report, train
from condconv.cli.output import describe_refusal, drop_output, prepare_output
from condconv.cli.parsing import Parser
from condconv.cli.signals import stopped_by_signals
from condconv.errors import (
    ExportError,
    MissingExtraError,
    TrainingError,
    TrainingInterrupted,
    UsageError,
    command_line,
    one_line,
)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="condconv",
        description="Convolutions with example-dependent kernels: try them, train them, inspect them.",
        epilog="'condconv COMMAND --help' describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"condconv {condconv.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, train, evaluate, models, bench, experiment, report, make_static, compress, budget, export):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0 done; 1 training failed, a benchmark or an export found a wrong result, or the system refused to
            write; 2 an argument is wrong; 130 interrupted; 141 the reader of the output has gone.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    prepare_output()
    try:
        with stopped_by_signals():
            return _run(argv)
    except KeyboardInterrupt:  # while an error was being printed
        return 130


def _run(argv: list[str]) -> int:
    command = command_line(["condconv", *argv])
    try:
        arguments = _parse(argv)
        arguments.argv = argv
        if getattr(arguments, "quiet", False):
            os.environ.setdefault("TQDM_DISABLE", "1")  # read when it is imported: readers of datasets show bars too
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except (UsageError, MissingExtraError) as error:
        return _fail(f"error: {error}", 2)
    except TrainingError as error:
        return _fail(f"failed: {error}", 1)
    except ExportError as error:
        return _fail(f"export failed: {error}", 1)
    except TrainingInterrupted as error:
        return _fail(f"interrupted: {error}; to resume: {command}", 130)
    except KeyboardInterrupt:
        return _fail(f"interrupted: nothing more is saved; to try again: {command}", 130)
    except BrokenPipeError:  # the reader (a pager, head) has gone
        drop_output()
        return 141
    except OSError as error:
        message, status = describe_refusal(error)
        return _fail(f"error: {message}", status)
    return status


def _parse(argv: list[str]) -> argparse.Namespace:
    try:
        return create_parser().parse_args(argv)
    except SystemExit:  # of --help and --version
        sys.stdout.flush()
        raise


def _fail(message: str, status: int) -> int:
    print("condconv:", one_line(message), file=sys.stderr)
    return status
