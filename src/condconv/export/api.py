"""The public function: rewrite, write, run, compare, and only then keep the file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.atomic import written_beside
from condconv.errors import ExportError, MissingExtraError, UsageError, require_extra
from condconv.export import verification
from condconv.export.arguments import check_outputs
from condconv.export.formats import FORMATS
from condconv.export.formats.request import Format, Inspection, Request, make_request
from condconv.export.report import ExportReport
from condconv.export.rewrite import rewrite
from condconv.export.storage import store_weights_, widened
from condconv.export.target import check_path
from condconv.export.verification import Reference, varied_inputs

_LARGEST_TRIED = 8


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str,
    example: Tensor | None = None,
    dynamic_batch: bool = True,
    max_batch: int | None = None,
    opset: int | None = None,
    forms: Mapping[str, str] | None = None,
    weights: str = "float32",
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    verify: bool = True,
) -> ExportReport:
    """Write a network for another runtime, run the file there, and keep it if it computes what the network does.

    Works on a copy: batch norms are folded into the experts, each conditional layer is written in the form that is
    fastest in that runtime, and the file is run at several batch sizes on examples that are routed differently.

    Args:
        model: Takes one fp32 tensor `[B, C, ...]` and returns one `[B, ...]`. With or without conditional layers.
            Not changed.
        path: To write; the format's suffix is required. A file of that name is replaced, once the new one is good.
        format: A key of `FORMATS`: `"torch-export"`, `"aoti"`, `"onnx"`, `"openvino"`, `"executorch"`, `"litert"` or
            `"coreml"`.
        example: `[B, C, ...]`, of which shape and dtype are taken; `None` to guess an image of the usual size.
        dynamic_batch: Whether the file takes any batch size; else it takes that of `example`.
        max_batch: The largest batch the file has to take; `None` for no limit, where the format has none.
        opset: Of an ONNX file; `None` for 18.
        forms: Other forms than the usual, by pattern of layers' names: `{"blocks.0.*": "esum"}`.
        weights: `"float32"`, or `"bfloat16"` or `"int8"` to store weights small; arithmetic stays in fp32, and routing
            functions keep their weights.
        class_names: To go into the file, in the order of the outputs.
        preprocessing: To go into the file as JSON: what images must go through, for example `{"size": 224, "mean":
            [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}`. `"crop"`, 1.0 unless given, and `"interpolation"`,
            `"bicubic"` unless given, are the other keys; the file also gets `"channels"`.
        verify: Whether to run the file before it is kept.

    Returns:
        What was written, in which forms, and how exact it is.

    Raises:
        UsageError: Something cannot be had; the message says what and what to do.
        MissingExtraError: A package is not installed.
        ExportError: The exporter cannot write the network, or the file does not compute what the network does. It is
            not kept.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3, num_experts=4), torch.nn.ReLU())
        >>> path = getfixture("tmp_path") / "net.pt2"
        >>> report = export(net, path, format="torch-export", example=torch.randn(1, 3, 8, 8))
        >>> report.verified, report.layers[0].form
        (True, 'unfold')
    """
    if not isinstance(path, str | Path):
        raise UsageError(f"`path` must be a text or a Path, got {type(path).__name__}: give the file's name")
    path = Path(path)
    writer = _format(format)
    check_path(path, format, writer.SUFFIX)
    path = path.resolve()  # or a link would become a file
    check_path(path, format, writer.SUFFIX)
    request = make_request(model, example, dynamic_batch, max_batch, opset, weights, class_names, preprocessing)
    if (reason := writer.why_not(request)) is not None:
        raise UsageError(reason)
    for package in writer.PACKAGES:
        require_extra(package, writer.EXTRA or "")
    check_outputs(model, request.example, class_names)
    rewritten, choices = rewrite(model, format, request.example, batch=request.batch, forms=forms)
    reference, weights_error, notes = _reference(model, rewritten, request)
    unverified = "not verified: verify=False" if not verify else writer.why_not_run()
    with written_beside(path, "path") as temporary:
        outside = _write(writer, rewritten, temporary, request)
        inspection = writer.inspect(temporary)
        _check(inspection, request)
        what = f"the file in {writer.RUNTIME}"
        errors = {} if unverified else verification.verify(writer.load(temporary), reference, _batches(request), what)
        size = sum(file.stat().st_size for file in temporary.parent.rglob("*") if file.is_file())
    return ExportReport(
        path=path,
        format=format,
        batch=request.batch,
        max_batch=request.max_batch,
        versions={name: version(name) for name in ("torch", *writer.PACKAGES)},
        opset=inspection.opset,
        layers=choices,
        weights=weights,
        weights_error=weights_error,
        bytes=size,
        errors=errors,
        allowed=reference.allowed,
        verified=unverified is None,
        notes=notes if unverified is None else (*notes, unverified),
        outside_delegate=outside,
    )


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UsageError(f"`format` must be one of {', '.join(FORMATS)}, got {name!r}: take one of them")
    return FORMATS[name]


def _write(writer: Format, rewritten: nn.Module, path: Path, request: Request) -> tuple[str, ...] | None:
    """Write the file; an exporter raises errors of any kind for what it does not know.

    Raises:
        ExportError: It cannot write the network.
    """
    try:
        return writer.write(rewritten, path, request)
    except (UsageError, MissingExtraError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"`model` must be made of what the exporter for {writer.RUNTIME} knows, got {type(error).__name__} "
            f"({reason}): try another format, or other forms for its layers"
        ) from error


def _batches(request: Request) -> tuple[int, ...]:
    if request.batch is not None:
        return (request.batch,) * (4 if request.batch == 1 else 2)
    return (1, 2, *(() if request.max_batch == 2 else (3,)), request.max_batch or _LARGEST_TRIED)


def _reference(
    model: nn.Module, rewritten: nn.Module, request: Request
) -> tuple[Reference, float | None, tuple[str, ...]]:
    """Return what the file has to compute, what storing its weights costs, and what the check cannot see.

    Where weights are stored small, `rewritten` is changed in place, after it was compared with the network.
    """
    inputs = varied_inputs(request.example, sum(_batches(request)))
    original = copy.deepcopy(model).cpu().eval()
    reference = verification.make_reference(original, inputs)
    notes = () if reference.blind is None else (reference.blind,)
    verification.verify(torch.no_grad()(rewritten), reference, _batches(request), "the rewritten network")
    if request.weights == "float32":
        return reference, None, notes
    store_weights_(rewritten, request.weights)
    stored = verification.make_reference(widened(rewritten), inputs)
    return stored, verification.worst_error(stored.outputs, reference.outputs), notes


def _check(inspection: Inspection, request: Request) -> None:
    """Compare what the file says of itself with what was asked for.

    Raises:
        ExportError: They differ.
    """
    if inspection.batch != request.batch:
        asked = "any batch size" if request.batch is None else f"batch {request.batch}"
        raise ExportError(f"the file must take {asked}, its own says {inspection.batch or 'any'}: the exporter lost it")
    if request.opset is not None and inspection.opset != request.opset:
        raise ExportError(f"the file must have opset {request.opset}, its own says {inspection.opset}")
