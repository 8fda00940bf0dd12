"""Options of the commands that run a trained network over images."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.parsing import add_option
from condconv.lab.rules import PATH, one_of, whole

CHECKPOINT = "a best.safetensors or last.safetensors, or what condconv make-static, compress or budget wrote"
"""Help for the checkpoint that a command reads."""


def add_reading_options(parser: argparse.ArgumentParser, *, unlabelled: bool = False) -> None:
    """Add the options that say which images are read, and how.

    Args:
        parser: Of the command.
        unlabelled: Whether the command also takes images without class folders.
    """
    kinds = (
        "a directory with val/ or with class folders, a .tar, 'digits', 'digits-conditions', "
        "'torch/NAME', 'hfds/NAME' or 'wds/DIRECTORY'"
    )
    if unlabelled:
        kinds = "as for 'condconv evaluate', or a directory of images without class folders"
    add_option(parser, "--data", PATH, f"{kinds} (not needed for a network trained on digits)")
    add_option(parser, "--data-dir", PATH, "where the files of torch/NAME are, or the cache of hfds/NAME")
    text = "images per forward pass (default: 64, or fewer if they are larger than 512 pixels)"
    add_option(parser, "--batch-size", whole(1), text)
    add_option(parser, "--workers", whole(0, 1024), "processes that read images", default=0)
    text = "what to do with an unreadable image"
    add_option(parser, "--on-bad-image", one_of("error", "skip"), text, default="error")
    text = "where to run; auto takes a GPU if there is one"
    add_option(parser, "--device", one_of("auto", "cpu"), text, default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(max_images=None)


def add_max_images(parser: argparse.ArgumentParser, *, default: int | None = None) -> None:
    """Add the option that bounds how many images are read."""
    text = "use at most this many images, a fixed random choice" + (" (default: all)" if default is None else "")
    add_option(parser, "--max-images", whole(1, 1_000_000_000), text, default=default)


def reading_of(arguments: argparse.Namespace) -> Any:
    """Return the `Reading` that the options ask for."""
    from condconv.lab.saved import Reading

    names = ("max_images", "batch_size", "workers", "on_bad_image", "device")
    return Reading(**{name: getattr(arguments, name) for name in names}, progress=not arguments.quiet)
