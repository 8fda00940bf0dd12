"""CoreML's `.mlpackage`, made from an exported program: made from a trace it would fix the example's batch size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import require_extra
from condconv.export.formats.request import OUTPUT, Inspection, Request, export_program
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".mlpackage", "coreml", ("coremltools",), "CoreML"
OPSETS = None
WHY_ONE_SIZE = "its ranges of sizes have an end, which cannot be given here"


def why_not(request: Request) -> str | None:
    """Return why weights in fewer bits or a batch without limit are not possible, or `None`."""
    if request.weights != "float32":
        return (
            f'`weights` must be "float32" for CoreML, got {request.weights!r}: use '
            "coremltools.optimize.coreml.linear_quantize_weights on the file"
        )
    if request.batch is None and request.max_batch is None:
        return "`max_batch` must be given for CoreML, got None: its range of batch sizes has an end; say which"
    return None


def why_not_run() -> str | None:
    """Return why a file cannot be run here, or `None`."""
    return None if sys.platform == "darwin" else "CoreML runs on macOS only: verify the file there"


def write(model: nn.Module, path: Path, request: Request) -> None:
    """Write the package, with the metadata as its user-defined metadata."""
    coremltools: Any = require_extra("coremltools", "coreml")
    program = export_program(model, request).run_decompositions({})
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])  # the converter does not know that it does nothing
        program.graph.erase_node(node)
    converted = coremltools.convert(
        program,
        outputs=[coremltools.TensorType(name=OUTPUT)],
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=coremltools.precision.FLOAT32,
    )
    converted.user_defined_metadata.update(request.metadata)
    converted.save(str(path))


def inspect(path: Path) -> Inspection:
    """Read the shape and the metadata."""
    specification: Any = require_extra("coremltools", "coreml").utils.load_spec(str(path))
    array = specification.description.input[0].type.multiArrayType
    bounds = array.shapeRange.sizeRanges or [None] * len(array.shape)
    metadata = dict(specification.description.metadata.userDefined)
    shape = (
        int(size) if bound is None or bound.lowerBound == bound.upperBound else None
        for size, bound in zip(array.shape, bounds, strict=True)
    )
    return Inspection(tuple(shape), None, metadata)


def load(path: Path) -> Run:
    """Return the package as a function, on macOS."""
    model: Any = require_extra("coremltools", "coreml").models.MLModel(str(path))
    name = model.get_spec().description.input[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(model.predict({name: x.numpy()})[OUTPUT])

    return run
