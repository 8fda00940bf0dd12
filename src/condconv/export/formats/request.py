"""What a format is asked to write, and the functions that every format has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from condconv.counting.tracing import default_example
from condconv.errors import UsageError, one_line, shown
from condconv.export.arguments import check_class_names, check_example, check_model, check_options
from condconv.export.preprocessing import complete_preprocessing
from condconv.export.verification import Run, varied_inputs

INPUT, OUTPUT = "image", "output"
"""Names of the file's input and output, if the format has names."""


@dataclass(frozen=True)
class Request:
    """What to write.

    Attributes:
        example_input: `[B, C, H, W]`, fp32: of the fixed batch size, or at least two for a dynamic one, since exporters
            treat a batch of one as a constant.
        batch: The fixed batch size, or `None` for a dynamic one.
        max_batch: The largest dynamic batch, or `None` for no limit.
        dynamic_size: Whether height and width are free.
        opset: Opset of an ONNX file; `None` for the exporter's own.
        weights: How weights are stored.
        metadata: Texts to write into the file, if the format has a place for them.
    """

    example_input: Tensor
    batch: int | None
    max_batch: int | None
    dynamic_size: bool
    opset: int | None
    weights: str
    metadata: Mapping[str, str]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape that the file has to take, `[B, C, *S]`; `None` for each axis that is free."""
        channels, *size = self.example_input.shape[1:]
        return (self.batch, channels, *((None,) * len(size) if self.dynamic_size else size))


@dataclass(frozen=True)
class Inspection:
    """What was read back from a written file.

    Attributes:
        shape: Shape of its input, `[B, C, *S]`; `None` for each axis that is symbolic.
        opset: Opset of an ONNX file.
        metadata: As in the request; empty if the format has no place for it.
    """

    shape: tuple[int | None, ...]
    opset: int | None
    metadata: Mapping[str, str]


class Format(Protocol):
    """A module of this package. Packages other than torch are imported in its functions."""

    @property
    def SUFFIX(self) -> str:  # noqa: N802 (a constant of a module)
        """Suffix of the file's name, with the dot."""

    @property
    def EXTRA(self) -> str | None:  # noqa: N802
        """Extra of this package that installs the packages; `None` if torch is enough."""

    @property
    def PACKAGES(self) -> tuple[str, ...]:  # noqa: N802
        """Modules to import, besides torch."""

    @property
    def RUNTIME(self) -> str:  # noqa: N802
        """Name of the runtime, for messages."""

    @property
    def OPSETS(self) -> range | None:  # noqa: N802
        """Versions of its operators that can be requested; `None` if there are none."""

    @property
    def WHY_ONE_SIZE(self) -> str | None:  # noqa: N802
        """Why a file takes images of one size only; `None` if height and width can be free."""

    def why_not(self, request: Request) -> str | None:
        """Return why a request cannot be met although the constants allow it, with the remedy, or `None`."""

    def why_not_run(self) -> str | None:
        """Return why a file cannot be run here, or `None`."""

    def write(self, model: nn.Module, path: Path, request: Request) -> tuple[str, ...] | None:
        """Write a rewritten model; return the operators outside a delegate, or `None` if there is no delegate."""

    def inspect(self, path: Path) -> Inspection:
        """Read back the shape, opset and metadata of a file."""

    def load(self, path: Path) -> Run:
        """Return a function that runs a file, `[B, C, H, W]` to `[B, ...]`, fp32 on the CPU."""


def make_request(
    model: nn.Module,
    example_input: Tensor | None,
    dynamic_batch: bool,
    max_batch: int | None,
    dynamic_size: bool,
    opset: int | None,
    weights: str,
    class_names: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
) -> Request:
    """Return the request for a call of `condconv.export.export`; it has the same arguments.

    Raises:
        UsageError: An argument is out of range.
    """
    check_model(model)
    check_options(dynamic_batch, max_batch, dynamic_size, opset, weights)
    try:
        given = default_example(model) if example_input is None else example_input
    except ValueError as error:
        reason = one_line(str(error).partition(": ")[2])
        raise UsageError(
            f"`example_input` must be given, got None: {reason[:300]}; give a tensor [B, C, ...]"
        ) from error
    check_example(given)
    given = given.detach().cpu()
    if dynamic_size and given.dim() < 3:
        raise UsageError(
            f"`dynamic_size` must be False for examples without height and width, got True with "
            f"{shown(tuple(given.shape))}: leave it out, or give an example [B, C, H, W]"
        )
    metadata = {"condconv": version("condconv")}
    if class_names is not None:
        check_class_names(class_names)
        metadata["class_names"] = json.dumps(list(class_names))
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(complete_preprocessing(preprocessing, given))
    # Two examples or more, also where one was given: exporters take a batch of one for a constant.
    traced = varied_inputs(given, 2 if dynamic_batch else len(given))
    batch = None if dynamic_batch else len(given)
    return Request(traced, batch, max_batch, dynamic_size, opset, weights, metadata)


def export_program(model: nn.Module, request: Request) -> ExportedProgram:
    """Return the graph of a rewritten model, in which free axes are symbolic."""
    axes: dict[int, Any] = {} if request.batch is not None else {0: Dim("batch", max=request.max_batch)}
    # Not named: torch may find the smallest size that the layers take.
    axes |= {axis: Dim.DYNAMIC for axis in range(2, len(request.shape)) if request.dynamic_size}
    with torch.no_grad():
        return torch.export.export(model, (request.example_input,), dynamic_shapes=(axes,))


def input_shape(program: ExportedProgram) -> tuple[int | None, ...]:
    """Return the shape that a graph takes, with `None` for each axis that is symbolic."""
    node = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    return tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
