"""`condconv export`: a checkpoint as a file for another runtime, run there before it is kept."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.errors import UsageError
from condconv.export import FORMATS, export
from condconv.export.storage import WEIGHTS


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained network for another runtime",
        description="Writes the network of a checkpoint of 'condconv train' for another runtime, with its class names "
        "and what images must go through. The file is run there at several batch sizes and compared with the network; "
        "one that computes something else is not kept.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="a best.safetensors or last.safetensors")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help="what to write")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the file to write")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--dynamic-batch", action="store_true", help="take any batch size; this is the default")
    batch.add_argument("--batch", type=int, metavar="N", help="take batches of N images only")
    parser.add_argument("--max-batch", type=int, metavar="N", help="the largest batch that has to run")
    parser.add_argument("--opset", type=int, help="of an ONNX file (default: 18)")
    parser.add_argument(
        "--form", action="append", metavar="PATTERN=FORM", help="write layers in another form; can be repeated"
    )
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="how they are stored (%(default)s)")
    parser.add_argument("--no-verify", action="store_true", help="keep the file without running it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the report."""
    import torch

    from condconv.train import load_checkpoint, load_network

    if arguments.batch is not None and arguments.batch < 1:
        raise UsageError(f"`--batch` must be at least 1, got {arguments.batch}: give a positive whole number")
    forms = _forms(arguments.form or [])
    checkpoint = load_checkpoint(arguments.checkpoint)
    size = checkpoint.image_size
    report = export(
        load_network(checkpoint, arguments.checkpoint),
        arguments.out,
        format=arguments.format,
        example=torch.zeros(arguments.batch or 1, checkpoint.in_chans, size, size),
        dynamic_batch=arguments.batch is None,
        max_batch=arguments.max_batch,
        opset=arguments.opset,
        forms=forms,
        weights=arguments.weights,
        class_names=checkpoint.class_names,
        preprocessing=checkpoint.preprocessing,
        verify=not arguments.no_verify,
    )
    print(report)
    return 0


def _forms(given: list[str]) -> dict[str, str]:
    wrong = next((each for each in given if "=" not in each), None)
    if wrong is not None:
        raise UsageError(f"`--form` must be PATTERN=FORM, got {wrong!r}: for example 'blocks.0.*=esum'")
    return {pattern: form for pattern, _, form in (each.rpartition("=") for each in given)}
