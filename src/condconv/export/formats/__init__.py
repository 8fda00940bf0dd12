"""One module per format, all with the same functions; see `request.Format`."""

from __future__ import annotations

from condconv.export.formats import aoti, coreml, executorch, litert, onnx, openvino, torch_export
from condconv.export.formats.request import Format

FORMATS: dict[str, Format] = {
    "torch-export": torch_export,
    "aoti": aoti,
    "onnx": onnx,
    "openvino": openvino,
    "executorch": executorch,
    "litert": litert,
    "coreml": coreml,
}
