"""`condconv export`: a checkpoint as a file for another runtime, run there before it is kept."""

from __future__ import annotations

import argparse
from typing import Any

from condconv.cli.parsing import Option
from condconv.lab.rules import PATH, Rule, one_of, whole

# As in `condconv.export`, which takes torch to import: --help does without.
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
    parser.add_argument("checkpoint", action=Option, rule=PATH, help="a best.safetensors or last.safetensors")
    parser.add_argument("--format", action=Option, rule=one_of(*_FORMATS), required=True, help="format of the file")
    parser.add_argument(
        "-o", "--out", action=Option, rule=PATH, required=True, metavar="FILE", help="the file to write"
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--dynamic-batch", action="store_true", help="take any batch size; this is the default")
    batch.add_argument("--batch", action=Option, rule=_COUNT, metavar="N", help="take batches of N images only")
    parser.add_argument("--max-batch", action=Option, rule=_COUNT, metavar="N", help="largest batch that must run")
    parser.add_argument("--dynamic-size", action="store_true", help="take images of any height and width")
    parser.add_argument("--opset", action=Option, rule=whole(1, 1000), help="opset of an ONNX file (default: 18)")
    parser.add_argument(
        "--form",
        action=Option,
        rule=_FORM,
        repeat=True,
        metavar="PATTERN=FORM",
        help="write matching layers in this form; can be repeated",
    )
    parser.add_argument(
        "--weights",
        action=Option,
        rule=one_of(*_WEIGHTS),
        default="float32",
        help="how weights are stored (default: %(default)s)",
    )
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
