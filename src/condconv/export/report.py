"""The report of an export: what was written, and how exactly the file computes the same as the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from condconv.errors import shown_name
from condconv.export.choose import Choice


@dataclass(frozen=True)
class ExportReport:
    """A written file. Printed, it is a table.

    Attributes:
        path: The file, or the directory that is the file in some formats.
        format: The requested format.
        shape: Shape that the file takes, `[B, C, *S]`; `None` for each axis that is free.
        max_batch: The largest batch, or `None` for no limit.
        versions: Versions of the packages that wrote and ran the file.
        opset: Opset of an ONNX file, read from it; `None` for other formats.
        layers: The form of each conditional layer, and why.
        weights: How weights are stored.
        weights_error: Error of the network with these weights against the original, for the worst example: norm of the
            difference over the norm of the output; `None` for `"float32"`.
        bytes: Of all files together.
        errors: For each batch size that was run, the error of the worst example, measured in the same way, against
            the network in fp64 (with the weights as stored).
        errors_by_size: The worst error at image sizes other than the example's, if sizes are free.
        allowed: The largest error that passes: ten times that of the network itself in fp32, or 256 roundings.
        verified: Whether the file was run and passed.
        notes: Remarks: why it is not verified, what the check cannot detect.
        outside_delegate: Operators that the runtime runs in its slow, portable form; `None` if it does not report them.
    """

    path: Path
    format: str
    shape: tuple[int | None, ...]
    max_batch: int | None
    versions: Mapping[str, str]
    opset: int | None
    layers: tuple[Choice, ...]
    weights: str
    weights_error: float | None
    bytes: int
    errors: Mapping[int, float]
    errors_by_size: Mapping[tuple[int, ...], float]
    allowed: float
    verified: bool
    notes: tuple[str, ...] = ()
    outside_delegate: tuple[str, ...] | None = field(default=None)

    @property
    def batch(self) -> int | None:
        """The fixed batch size, or `None` if the file takes any up to `max_batch`."""
        return self.shape[0]

    def __str__(self) -> str:
        """Return the attributes, one per line, and a table of the layers."""
        facts = {
            "file": f"{shown_name(self.path, 10_000)} ({self.bytes / 1e6:.3g} MB)",
            "format": f"{self.format}, {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
            "batch": self._batch(),
            "size": self._size(),
            "opset": None if self.opset is None else str(self.opset),
            "weights": self.weights
            if self.weights_error is None
            else f"{self.weights}, error {self.weights_error:.1e} against float32",
            "portable": None if self.outside_delegate is None else ", ".join(self.outside_delegate) or "no operators",
            "verified": self._verified(),
        }
        lines = [f"{name:9}{value}" for name, value in facts.items() if value is not None]
        lines += [f"{'note':9}{note}" for note in self.notes]
        width = max((len(choice.layer) for choice in self.layers), default=0)
        lines += [f"{each.layer:{width}}  {each.kind:9} {each.form:8} {each.why}" for each in self.layers]
        lines += [
            f"not folded into {each.layer}: {each.unfolded[0]}: {each.unfolded[1]}"
            for each in self.layers
            if each.unfolded is not None
        ]
        return "\n".join(lines)

    def _batch(self) -> str:
        if self.batch is not None:
            return f"{self.batch}, fixed"
        return "any" if self.max_batch is None else f"1 to {self.max_batch}"

    def _size(self) -> str | None:
        if len(self.shape) < 3:
            return None
        return "any" if None in self.shape[2:] else f"{' x '.join(map(str, self.shape[2:]))}, fixed"

    def _verified(self) -> str:
        if not self.verified:
            return "no"
        places = {f"batch {batch}": error for batch, error in self.errors.items()}
        places |= {" x ".join(map(str, size)): error for size, error in self.errors_by_size.items()}
        errors = ", ".join(f"{error:.1e} at {place}" for place, error in places.items())
        return f"yes: error {errors}; allowed {self.allowed:.1e}"
