"""The public function: rewrite, write, run, compare, and only then keep the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import ExportError, MissingExtraError, UsageError, check_type, one_line
from condconv.export.arguments import check_outputs, check_path
from condconv.export.choose import choose
from condconv.export.formats import check_format, format_named
from condconv.export.formats.request import Format, Inspection, Request, make_request
from condconv.export.report import ExportReport
from condconv.export.rewrite import copy_of, rewrite_
from condconv.export.trials import make_trials, run_trials, store_
from condconv.files.atomic import is_disk_full, written_beside


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str,
    example_input: Tensor | None = None,
    dynamic_batch: bool = True,
    max_batch: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    forms: Mapping[str, str] | None = None,
    weights: str = "float32",
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    verify: bool = True,
) -> ExportReport:
    """Write a network for another runtime, run the file there, and keep it if it computes the same as the network.

    Works on a copy: batch norms are folded into the experts, each conditional layer is written in the form that is
    fastest in that runtime, and the file is run at several batch sizes on examples that are routed differently.

    Args:
        model: Takes one fp32 tensor `[B, C, ...]` and returns one `[B, ...]`. With or without conditional layers.
            Not changed.
        path: The file to write; the format's suffix is required. An existing file is replaced once the new one passes.
        format: A key of `FORMATS`: `"torch-export"`, `"aoti"`, `"onnx"`, `"openvino"`, `"executorch"`, `"litert"` or
            `"coreml"`.
        example_input: `[B, C, ...]`; its shape and dtype are used. `None` for an image of the usual size.
        dynamic_batch: Whether the file takes any batch size; otherwise only that of `example_input`.
        max_batch: The largest batch that the file has to take; `None` for no limit, if the format has none.
        dynamic_size: Whether the file takes images of any height and width that the network takes, if the runtime can;
            otherwise only those of `example_input`. The file is also run at sizes other than the example's.
        opset: Opset of an ONNX file; `None` for 18.
        forms: Forms that replace the defaults, by pattern of layers' names: `{"blocks.0.*": "esum"}`.
        weights: `"float32"`, or `"bfloat16"` or `"int8"` to store weights in fewer bits; arithmetic stays in fp32, and
            routing functions keep their weights.
        class_names: Names to write into the file, in the order of the outputs.
        preprocessing: How images are prepared, written into the file as JSON, for example `{"size": 224, "mean":
            [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}`. The other keys are `"crop"`, by default 1.0, and
            `"interpolation"`, by default `"bicubic"`; the file also gets `"channels"`.
        verify: Whether to run the file before it is kept.

    Returns:
        What was written, in which forms, and how exact it is.

    Raises:
        UsageError: An argument cannot be satisfied; the message says why and what to do.
        MissingExtraError: A package is not installed.
        ExportError: The exporter cannot write the network, or the file does not compute the same as the network. It is
            not kept.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3, num_experts=4), torch.nn.ReLU())
        >>> path = getfixture("tmp_path") / "net.pt2"
        >>> report = export(net, path, format="torch-export", example_input=torch.randn(1, 3, 8, 8))
        >>> report.verified, report.layers[0].form
        (True, 'unfold')
    """
    check_type("path", path, (str, Path), "be a text or a Path", "give the file's name")
    path = Path(path)
    writer = format_named(format)
    check_path(path, format, writer.SUFFIX)
    path = path.resolve()  # or a link would become a file
    check_path(path, format, writer.SUFFIX)
    check_type("verify", verify, bool, "be True or False", "give one of them")
    request = make_request(
        model, example_input, dynamic_batch, max_batch, dynamic_size, opset, weights, class_names, preprocessing
    )
    check_format(writer, request)
    copied = copy_of(model)  # once: it is run first, and then rewritten in place
    check_outputs(copied, request.example_input, class_names)
    chosen = choose(copied, format, request.batch, forms)
    trials = make_trials(copied, request)
    rewritten, choices = rewrite_(copied, format, request.example_input, chosen)
    run_trials(torch.no_grad()(rewritten), trials, "the rewritten network")
    trials, weights_error = store_(rewritten, request, trials)
    unverified = "not verified: verify=False" if not verify else writer.why_not_run()
    with written_beside(path, "path") as temporary:
        outside = _write(writer, rewritten, temporary, request)
        inspection = writer.inspect(temporary)
        _check_file(inspection, request)
        errors = () if unverified else run_trials(writer.load(temporary), trials, f"the file in {writer.RUNTIME}")
        size = sum(file.stat().st_size for file in temporary.parent.rglob("*") if file.is_file())
    return ExportReport(
        path=path,
        format=format,
        shape=request.shape,
        max_batch=request.max_batch,
        versions={name: version(name) for name in ("torch", *writer.PACKAGES)},
        opset=inspection.opset,
        layers=choices,
        weights=weights,
        weights_error=weights_error,
        bytes=size,
        errors=errors[0] if errors else {},
        errors_by_size={trial.size: max(each.values()) for trial, each in zip(trials[1:], errors[1:], strict=False)},
        allowed=trials[0].reference.allowed,
        verified=unverified is None,
        notes=tuple(note for note in (trials[0].reference.blind, unverified) if note is not None),
        outside_delegate=outside,
    )


def _write(writer: Format, rewritten: nn.Module, path: Path, request: Request) -> tuple[str, ...] | None:
    """Write the file; an exporter may raise any kind of error for a network that it cannot write.

    Raises:
        ExportError: It cannot write the network.
    """
    try:
        return writer.write(rewritten, path, request)
    except (UsageError, MissingExtraError):
        raise
    except Exception as error:
        if is_disk_full(error):
            raise  # explained where the file's place is known
        reason = one_line(str(error))[:300]
        raise ExportError(
            f"`model` must consist of operations that the exporter for {writer.RUNTIME} knows, got "
            f"{type(error).__name__} ({reason}): try another format, or other `forms` for its layers"
        ) from error


def _check_file(inspection: Inspection, request: Request) -> None:
    """Compare the file's own metadata with the request.

    Raises:
        ExportError: They differ.
    """
    if inspection.shape != request.shape:
        asked, told = (
            f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
            for shape in (request.shape, inspection.shape)
        )
        raise ExportError(
            f"`example_input` must be in the file as {asked}, got {told}, since the exporter lost it: try another "
            "format, or a fixed batch and size"
        )
    if request.opset is not None and inspection.opset != request.opset:
        raise ExportError(
            f"`opset` must be {request.opset} in the file, got {inspection.opset}: leave it out to take the exporter's"
        )
