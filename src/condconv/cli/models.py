"""`condconv models`: the networks, their cost, and the paper's numbers beside it."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "models",
        help="list the networks",
        description="Lists the networks with parameters and multiply-adds (MADDs: convolutions, routing and "
        "mixing of kernels; one image of 224 pixels, 1000 classes), and the paper's MADDs and ImageNet top-1 "
        "where it has them.",
    )
    parser.add_argument("pattern", nargs="?", default="", help="list only names that contain this text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    import torch

    from condconv.counting import count
    from condconv.errors import UsageError
    from condconv.models import create_model, get_model_info, list_models

    names = [name for name in list_models() if arguments.pattern in name]
    if not names:
        raise UsageError(
            f"`pattern` must be part of a network's name, got {arguments.pattern!r}: 'condconv models' lists all names"
        )
    width = max(map(len, names))
    print(f"{'name':{width}}  {'params':>8}  {'MADDs':>8}  {'paper MADDs':>11}  {'paper top-1':>11}")
    for name in names:
        info = get_model_info(name)
        with torch.device("meta"):  # shapes alone: no parameter is drawn and nothing is multiplied
            total = count(create_model(name), torch.zeros(1, 3, 224, 224)).total
        madds, top1 = info.paper_madds, info.paper_top1
        print(
            f"{name:{width}}  {_millions(total.params):>8}  {_millions(total.madds):>8}  "
            f"{_millions(madds) if madds else '-':>11}  {f'{top1:.1f} %' if top1 else '-':>11}",
        )
    return 0


def _millions(value: float) -> str:
    return f"{value / 1e6:.1f}M"
