"""`condconv export`: a checkpoint as a file for another runtime, run there before it is kept."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.parsing import add_option
from condconv.cli.reading import CHECKPOINT
from condconv.lab.rules import PATH, Rule, one_of, whole

# As in `condconv.export`, which --help does not import: it needs torch.
_FORMATS = ("torch-export", "aoti", "onnx", "openvino", "executorch", "litert", "coreml")
_WEIGHTS = ("float32", "bfloat16", "int8")
_COUNT = whole(1)


def _read_form(text: str) -> Any:
    pattern, equals, form = text.rpartition("=")
    return (pattern, form) if equals and pattern and form else text


_FORM = Rule(lambda value: isinstance(value, tuple), "PATTERN=FORM", "write it like 'blocks.0.*=esum'", _read_form)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained network for another runtime",
        description="Writes the network of a checkpoint of 'condconv train' for another runtime, with its class names "
        "and the preprocessing of its images. The file is run there at several batch sizes and compared with the "
        "network; a file that computes something else is deleted.",
    )
    add_option(parser, "checkpoint", PATH, CHECKPOINT)
    add_option(parser, "--format", one_of(*_FORMATS), "format of the file", required=True)
    add_option(parser, "-o --out", PATH, "the file to write", required=True, metavar="FILE")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--dynamic-batch", action="store_true", help="take any batch size; this is the default")
    add_option(batch, "--batch", _COUNT, "take batches of N images only", metavar="N")
    add_option(parser, "--max-batch", _COUNT, "largest batch that must run", metavar="N")
    parser.add_argument("--dynamic-size", action="store_true", help="take images of any height and width")
    add_option(parser, "--opset", whole(1, 1000), "opset of an ONNX file (default: 18)")
    text = "write matching layers in this form; can be repeated"
    add_option(parser, "--form", _FORM, text, repeat=True, metavar="PATTERN=FORM")
    add_option(parser, "--weights", one_of(*_WEIGHTS), "how weights are stored", default="float32")
    parser.add_argument("--no-verify", action="store_true", help="keep the file without running it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the report."""
    import torch

    from condconv.export import export
    from condconv.lab.saved import load_trained

    checkpoint, network = load_trained(arguments.checkpoint)
    size = checkpoint.image_size
    report = export(
        network,
        arguments.out,
        format=arguments.format,
        example_input=torch.zeros(arguments.batch or 1, checkpoint.in_chans, size, size),
        dynamic_batch=arguments.batch is None,
        max_batch=arguments.max_batch,
        dynamic_size=arguments.dynamic_size,
        opset=arguments.opset,
        forms=dict(arguments.form or ()),
        weights=arguments.weights,
        class_names=checkpoint.class_names,
        preprocessing=checkpoint.preprocessing.facts(),
        verify=not arguments.no_verify,
    )
    print(report)
    return 0
