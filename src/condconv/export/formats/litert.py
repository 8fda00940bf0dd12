"""LiteRT's `.tflite`, for one batch size: its runtime can resize the input, but then computes wrong values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import require_extra
from condconv.export.formats.request import Inspection, Request
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".tflite", "litert", ("litert_torch", "ai_edge_litert"), "LiteRT"
OPSETS = None
WHY_ONE_SIZE = "a resized file gives wrong values"


def why_not(request: Request) -> str | None:
    """Return why a dynamic batch or weights in fewer bits are not possible, or `None`."""
    if request.batch is None:
        return (
            "`dynamic_batch` must be False for LiteRT, got True: a resized file gives wrong values; "
            "give an example of the batch size you need (`--batch`), and write a file for each size"
        )
    if request.weights != "float32":
        return f'`weights` must be "float32" for LiteRT, got {request.weights!r}: quantise with ai_edge_quantizer'
    return None


def why_not_run() -> str | None:
    """Return `None`: a file runs where it is written."""
    return None


def write(model: nn.Module, path: Path, request: Request) -> None:
    """Write the file, without metadata: the format has no simple place for it."""
    litert: Any = require_extra("litert_torch", "litert")
    litert.convert(model, (request.example_input,)).export(str(path))


def inspect(path: Path) -> Inspection:
    """Read the shape."""
    shape = _interpreter(path).get_input_details()[0]["shape_signature"]
    return Inspection(tuple(None if size < 0 else int(size) for size in shape), None, {})


def load(path: Path) -> Run:
    """Return the file as a function."""
    interpreter = _interpreter(path)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(x: Tensor) -> Tensor:
        interpreter.set_tensor(source["index"], x.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(target["index"]).copy())

    return run


def _interpreter(path: Path) -> Any:
    return require_extra("ai_edge_litert.interpreter", "litert").Interpreter(model_path=str(path))
