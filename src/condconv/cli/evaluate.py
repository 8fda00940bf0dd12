"""`condconv evaluate`: accuracy of a checkpoint on images."""

from __future__ import annotations

import argparse
import os
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a trained network",
        description="Scores a checkpoint of 'condconv train' on images, at the size it was trained for.",
    )
    parser.add_argument("checkpoint", help="a best.safetensors or last.safetensors")
    parser.add_argument(
        "--data",
        help="a directory with val/ or with class folders, a .tar, 'digits', 'torch/NAME', 'hfds/NAME' or "
        "'wds/DIRECTORY' (default: the run's)",
    )
    parser.add_argument("--data-dir", help="where the files of torch/NAME are, or the cache of hfds/NAME")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="what to do with an unreadable image",
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="where to run (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the scores."""
    from condconv.train import evaluate_checkpoint, load_checkpoint

    data = arguments.data
    if data is None:
        config = load_checkpoint(arguments.checkpoint).config
        data = config.val_data or config.data
    result = evaluate_checkpoint(
        arguments.checkpoint,
        data,
        data_dir=arguments.data_dir,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        on_bad_image=arguments.on_bad_image,
        device=arguments.device,
        progress=not arguments.quiet,
    )
    if os.environ.get("RANK", "0") != "0":  # set by every launcher of several processes: one of them speaks
        return 0
    print(f"images   {result.images}")
    print(f"top-1    {100 * result.top1:.2f} %")
    if result.top5 is not None:
        print(f"top-5    {100 * result.top5:.2f} %")
    print(f"loss     {result.loss:.4f}")
    print(f"speed    {result.images_per_second:.0f} images/s, reading included")
    if result.skipped_images:
        print(f"skipped  {result.skipped_images} that could not be read")
    return 0
