"""The command `condconv`: arguments in, errors out as one line and an exit status."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

import condconv
from condconv.cli import bench, demo, evaluate, experiment, export, freeze, models, report, train
from condconv.cli.signals import stopped_by_signals
from condconv.errors import ExportError, MissingExtraError, TrainingError, TrainingInterrupted, UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="condconv",
        description="Convolutions with example-dependent kernels: try them, train them, look at them.",
        epilog="'condconv COMMAND --help' describes a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"condconv {condconv.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, train, evaluate, models, bench, experiment, report, freeze, export):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0 done; 1 training failed, or a benchmark or an export found a wrong result; 2 something given
            is wrong; 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = create_parser().parse_args(argv)
        arguments.argv = argv
        with stopped_by_signals():
            status: int = arguments.run(arguments)
        sys.stdout.flush()
    except (UsageError, MissingExtraError) as error:
        return _fail(f"error: {error}", 2)
    except TrainingError as error:
        return _fail(f"training failed: {error}", 1)
    except ExportError as error:
        return _fail(f"export failed: {error}", 1)
    except TrainingInterrupted as error:
        return _fail(f"interrupted: {error}; to go on: {shlex.join(['condconv', *argv])}", 130)
    except KeyboardInterrupt:
        return _fail(f"interrupted: nothing more is saved; to try again: {shlex.join(['condconv', *argv])}", 130)
    except BrokenPipeError:
        # The reader (a pager, head) has gone; what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _fail(message: str, status: int) -> int:
    print("condconv:", " ".join(message.split()), file=sys.stderr)
    return status
