"""OpenVINO's `.xml` and `.bin`, made from an ONNX file: of the two ways, only this one keeps loops over the batch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import require_extra
from condconv.export.formats import onnx
from condconv.export.formats.request import Inspection, Request
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".xml", "openvino", ("onnx", "onnxscript", "openvino"), "OpenVINO"
OPSETS, WHY_ONE_SIZE = None, None
_KEY = "condconv"


def why_not(request: Request) -> str | None:
    """Return why weights cannot be stored in the requested type, or `None`."""
    if request.weights != "bfloat16":
        return None
    return '`weights` must be "float32" or "int8" for OpenVINO, got "bfloat16": it widens them as it saves; take "int8"'


def why_not_run() -> str | None:
    """Return `None`: a file runs where it is written."""
    return None


def write(model: nn.Module, path: Path, request: Request) -> None:
    """Write the two files; the metadata goes into `rt_info`, under `condconv`."""
    openvino = require_extra("openvino", "openvino")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # one disk, which messages name, has to have room
        source = Path(folder) / "model.onnx"
        onnx.write(model, source, request)
        converted = openvino.convert_model(source)
        for key, value in request.metadata.items():
            converted.set_rt_info(value, [_KEY, key])
        try:
            openvino.save_model(converted, path, compress_to_fp16=False)
            openvino.Core().read_model(path)  # which fails if only a part was written: older versions do not say so
        except RuntimeError as error:
            if "iostream" in str(error) or "bin file" in str(error):  # they do not say why it cannot be written
                _write_more(path.with_suffix(".bin"), path)
            raise


def _write_more(*paths: Path) -> None:
    """Write more to files, for the system's reason why they cannot be written.

    Raises:
        OSError: With the reason.
    """
    for path in paths:
        with path.open("ab") as file:
            file.write(bytes(2**20))


def inspect(path: Path) -> Inspection:
    """Read the shape and the metadata."""
    model: Any = require_extra("openvino", "openvino").Core().read_model(path)
    shape = tuple(None if axis.is_dynamic else axis.get_length() for axis in model.inputs[0].partial_shape)
    metadata = model.get_rt_info(_KEY).value if model.has_rt_info(_KEY) else {}
    return Inspection(shape, None, {key: str(value) for key, value in metadata.items()})


def load(path: Path) -> Run:
    """Return the file as a function that computes in fp32 with as many threads as torch uses.

    Without the hint some CPUs compute in bf16.
    """
    openvino = require_extra("openvino", "openvino")
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", hints)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.numpy())[0])

    return run
