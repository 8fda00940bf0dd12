"""One module per format, all with the same functions; see `request.Format`."""

from __future__ import annotations

from condconv.errors import UsageError, require_extra, shown
from condconv.export.formats import aoti, coreml, executorch, litert, onnx, openvino, torch_export
from condconv.export.formats.request import Format, Request

FORMATS: dict[str, Format] = {
    "torch-export": torch_export,
    "aoti": aoti,
    "onnx": onnx,
    "openvino": openvino,
    "executorch": executorch,
    "litert": litert,
    "coreml": coreml,
}


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UsageError: There is none.
    """
    if not isinstance(name, str) or name not in FORMATS:
        raise UsageError(f"`format` must be one of {', '.join(FORMATS)}, got {shown(name)}: take one of them")
    return FORMATS[name]


def check_format(format: Format, request: Request) -> None:
    """Refuse a request that a format cannot meet, before its packages are needed.

    Raises:
        UsageError: With the reason and the remedy.
        MissingExtraError: A package is not installed.
    """
    if (reason := _why_not_opset(format, request.opset) or format.why_not(request)) is not None:
        raise UsageError(reason)
    if request.dynamic_size and format.WHY_ONE_SIZE is not None:
        raise UsageError(
            f"`dynamic_size` must be False for {format.RUNTIME}, got True: {format.WHY_ONE_SIZE}; write a file for "
            "each size"
        )
    for package in format.PACKAGES:
        require_extra(package, format.EXTRA or "")


def _why_not_opset(format: Format, opset: int | None) -> str | None:
    if opset is None or (format.OPSETS is not None and opset in format.OPSETS):
        return None
    if format.OPSETS is None:
        return f"`opset` must be None for {format.RUNTIME}, got {shown(opset)}: its files have none; leave it out"
    return (
        f"`opset` must lie between {format.OPSETS[0]} and {format.OPSETS[-1]}, got {shown(opset)}: torch writes no "
        "other; leave it out, or convert the file with onnx.version_converter"
    )
