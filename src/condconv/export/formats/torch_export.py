"""A `.pt2` file of `torch.export`: the graph in torch's own operators, for Python without the model's code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from condconv.export.formats.request import Inspection, Request, export_program, input_shape
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".pt2", None, (), "torch.export"
OPSETS, WHY_ONE_SIZE = None, None
_METADATA = "condconv.json"


def why_not(request: Request) -> str | None:
    """Return `None`: all requests can be met."""


def why_not_run() -> str | None:
    """Return `None`: a file runs where it is written."""
    return None


def write(model: nn.Module, path: Path, request: Request) -> None:
    """Write the graph, with the metadata as the extra file `condconv.json`."""
    program = export_program(model, request)
    held = io.BytesIO()  # torch's writer of files aborts the process if the disk is full
    torch.export.save(program, held, extra_files={_METADATA: json.dumps(dict(request.metadata))})
    path.write_bytes(held.getbuffer())


def inspect(path: Path) -> Inspection:
    """Read the shape and the metadata."""
    extra = {_METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    return Inspection(input_shape(program), None, json.loads(extra[_METADATA]))


def load(path: Path) -> Run:
    """Return the graph as a function."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return module(x)

    return run
