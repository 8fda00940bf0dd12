"""An ONNX file, run in ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import require_extra
from condconv.export.formats.request import INPUT, OUTPUT, Inspection, Request, export_program
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".onnx", "onnx", ("onnx", "onnxscript", "onnxruntime"), "ONNX Runtime"
WHY_ONE_SIZE = None
OPSETS = range(18, 24)  # that torch's exporter honours; asked for a lower one it writes 18 all the same
_LARGEST = 1_500_000_000  # bytes of weights in the file itself; protobuf's limit is 2 GiB
_ERRORS_ONLY = 3


def why_not(request: Request) -> str | None:
    """Return `None`: all requests can be met."""


def why_not_run() -> str | None:
    """Return `None`: a file runs where it is written."""
    return None


def write(model: nn.Module, path: Path, request: Request) -> None:
    """Write the file, with the metadata as its `metadata_props`.

    Weights of more than 1.5 GB go into a second file, `<name>.onnx.data`.
    """
    onnx = require_extra("onnx", "onnx")
    program = export_program(model, request)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    written: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=request.opset or OPSETS[0],
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
        optimize=request.weights == "float32",  # it would widen stored weights in the file
    )
    written.save(path, external_data=size > _LARGEST)
    proto = onnx.load(path, load_external_data=False)
    _name_axes(proto.graph)
    _forget_origin(proto.graph)
    _drop_unused(proto.graph)
    onnx.helper.set_model_props(proto, dict(request.metadata))
    onnx.save(proto, path)


def _name_axes(graph: Any) -> None:
    """Rename the symbolic axes of images to "batch", "height" and "width"; the exporter numbers them."""
    axes = graph.input[0].type.tensor_type.shape.dim
    named = [(axes[0], "batch"), *zip(reversed(axes[2:]), ("width", "height", "depth"), strict=False)]
    symbols = {axis.dim_param: name for axis, name in named if axis.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                # It may be a term of several, as of an output that is half as high.
                axis.dim_param = re.sub(r"\w+", lambda word: symbols.get(word[0], word[0]), axis.dim_param)


def _forget_origin(graph: Any) -> None:
    """Drop the exporter's notes on each node: lines and paths of the source, many times the size of the graph."""
    for each in (graph, *graph.node, *graph.value_info, *graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_origin(attribute.g)


def _drop_unused(graph: Any) -> None:
    """Drop constants that the exporter writes both inside and outside a loop: ONNX Runtime warns about each."""
    used = _names_used(graph)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


def _names_used(graph: Any) -> set[str]:
    """Return the names that the nodes of a graph and of the graphs inside them read, and its outputs."""
    names = {each.name for each in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _names_used(attribute.g)
    return names


def inspect(path: Path) -> Inspection:
    """Read the shape, the opset and the metadata."""
    proto = require_extra("onnx", "onnx").load(path, load_external_data=False)
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    opset = next(each.version for each in proto.opset_import if each.domain == "")
    metadata = {each.key: each.value for each in proto.metadata_props}
    return Inspection(tuple(None if axis.dim_param else axis.dim_value for axis in axes), opset, metadata)


def load(path: Path) -> Run:
    """Return the file as a function, which uses as many threads as torch does."""
    onnxruntime = require_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])

    return run
