"""Options of the commands that run a trained network over images."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.parsing import Option
from condconv.lab.rules import PATH, one_of, whole


def add_reading_options(parser: argparse.ArgumentParser, *, unlabelled: bool = False) -> None:
    """Add the options for which images are read, and how; `unlabelled` images have no class folders."""
    kinds = (
        "a directory with val/ or with class folders, a .tar, 'digits', 'torch/NAME', 'hfds/NAME' or 'wds/DIRECTORY'"
    )
    if unlabelled:
        kinds = "as for 'condconv evaluate', or a directory of images without class folders"
    for flag, rule, default, text in (
        ("--data", PATH, None, f"{kinds} (not needed for a network trained on 'digits')"),
        ("--data-dir", PATH, None, "where the files of torch/NAME are, or the cache of hfds/NAME"),
        ("--batch-size", whole(1), 64, "images per forward pass (default: %(default)s)"),
        ("--workers", whole(0, 1024), 0, "processes that read images (default: %(default)s)"),
        ("--on-bad-image", one_of("error", "skip"), "error", "what to do with an unreadable image"),
        ("--device", one_of("auto", "cpu"), "auto", "where to run (default: %(default)s)"),
    ):
        parser.add_argument(flag, action=Option, rule=rule, default=default, help=text)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(max_images=None)


def add_max_images(parser: argparse.ArgumentParser, *, default: int | None = None) -> None:
    """Add the option that bounds how many images are read."""
    parser.add_argument(
        "--max-images",
        action=Option,
        rule=whole(1, 1_000_000_000),
        default=default,
        help=f"use at most this many images, a fixed random choice (default: {default or 'all'})",
    )


def reading_of(arguments: argparse.Namespace) -> Any:
    """Return the `Reading` that the options ask for."""
    from condconv.lab.saved import Reading

    names = ("max_images", "batch_size", "workers", "on_bad_image", "device")
    return Reading(**{name: getattr(arguments, name) for name in names}, progress=not arguments.quiet)
