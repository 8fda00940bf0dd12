"""A `.pt2` package of AOTInductor: compiled for this machine's CPU, run from Python or C++."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condconv.errors import shown_name
from condconv.export.formats import torch_export
from condconv.export.formats.request import Inspection, Request, export_program
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".pt2", None, (), "AOTInductor"
OPSETS, WHY_ONE_SIZE = None, None
_METADATA = "condconv"

_PLACES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # the first that is set is where torch's C++ unpacks a package

why_not_run = torch_export.why_not_run


def why_not(request: Request) -> str | None:
    """Return why torch cannot unpack a package here, or `None`: it can compile what torch.export can write."""
    name = next((each for each in _PLACES if each in os.environ), "TMPDIR")
    place = os.environ.get(name, "/tmp")
    try:
        with tempfile.TemporaryDirectory(dir=place):
            return None
    except OSError as error:
        return (
            f"`{name}` must be a directory that can be written to, got {shown_name(place)} ({error.strerror}): set "
            "this environment variable to another, in which AOTInductor unpacks its files"
        )


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
