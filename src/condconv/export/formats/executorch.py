"""ExecuTorch's `.pte` for phones and boards, with XNNPACK as its delegate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import require_extra
from condconv.export.formats.request import Inspection, Request, export_program
from condconv.export.verification import Run

SUFFIX, EXTRA, PACKAGES, RUNTIME = ".pte", "executorch", ("executorch",), "ExecuTorch"
OPSETS = None
WHY_ONE_SIZE = "it plans its memory ahead, for a largest size that cannot be given here"
_METADATA = "condconv"
_DELEGATED = {"executorch_call_delegate", "getitem"}


def why_not(request: Request) -> str | None:
    """Return why memory cannot be planned or weights cannot be stored in fewer bits, or `None`."""
    if request.batch is None and request.max_batch is None:
        return (
            "`max_batch` must be given for ExecuTorch, got None: it plans its memory ahead; say how large a batch gets"
        )
    if request.weights != "float32":
        return (
            f'`weights` must be "float32" for ExecuTorch, got {request.weights!r}: small weights leave XNNPACK, '
            "unless activations are in int8 too, which computes something else; XNNPACKQuantizer makes such a program"
        )
    return None


def why_not_run() -> str | None:
    """Return `None`: a file runs where it is written."""
    return None


def write(model: nn.Module, path: Path, request: Request) -> tuple[str, ...]:
    """Write the program, with the metadata as the constant method `condconv`; return operators left to torch's own."""
    exir: Any = require_extra("executorch.exir", "executorch")
    xnnpack: Any = require_extra("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    facts = {"shape": request.shape, "metadata": dict(request.metadata)}
    lowered = exir.to_edge_transform_and_lower(
        export_program(model, request),
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods={_METADATA: json.dumps(facts)},
    )
    path.write_bytes(lowered.to_executorch().buffer)
    called = (node.target for node in lowered.exported_program().graph.nodes if node.op == "call_function")
    names = {getattr(target, "__name__", str(target)) for target in called}
    return tuple(sorted(names - _DELEGATED))


def inspect(path: Path) -> Inspection:
    """Read the metadata, which has the requested shape; only running the program shows the real one."""
    (text,) = _method(path, _METADATA).execute([])
    facts = json.loads(text)
    return Inspection(tuple(facts["shape"]), None, facts["metadata"])


def load(path: Path) -> Run:
    """Return the program as a function."""
    method = _method(path, "forward")

    def run(x: Tensor) -> Tensor:
        return torch.as_tensor(method.execute([x])[0]).clone()

    return run


def _method(path: Path, name: str) -> Any:
    runtime: Any = require_extra("executorch.runtime", "executorch")
    return runtime.Runtime.get().load_program(path).load_method(name)
