"""A `.pt2` package of AOTInductor: compiled for this machine's CPU, run from Python or C++."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condconv.export.formats import torch_export
from condconv.export.formats.request import Inspection, Request, export_program
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".pt2", None, (), "AOTInductor"
OPSETS, WHY_ONE_SIZE = None, None
_METADATA = "condconv"

# It compiles the graph of torch.export: what can be had there, can be had here.
why_not, why_not_run = torch_export.why_not, torch_export.why_not_run


def write(model: nn.Module, path: Path, request: Request) -> None:
    """Compile the graph; the metadata goes into the package's own."""
    program = export_program(model, request)
    metadata = {_METADATA: json.dumps(dict(request.metadata)), "shape": json.dumps(request.shape)}
    held = io.BytesIO()  # torch's writer of files aborts the process if the disk is full
    torch._inductor.aoti_compile_and_package(
        program, package_path=held, inductor_configs={"aot_inductor.metadata": metadata}
    )
    path.write_bytes(held.getbuffer())


def inspect(path: Path) -> Inspection:
    """Read the metadata, which has the requested shape; only running the package shows the real one."""
    metadata: Any = torch._inductor.aoti_load_package(str(path)).get_metadata()
    return Inspection(tuple(json.loads(metadata["shape"])), None, json.loads(metadata[_METADATA]))


def load(path: Path) -> Run:
    """Return the package as a function."""
    return torch._inductor.aoti_load_package(str(path))
