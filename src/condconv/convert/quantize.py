"""Store the experts of a trained network in one or two bytes per number, for inference."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from condconv.convert.refusals import why_not_shared
from condconv.convert.rounding import check_rounded, run_watched
from condconv.convert.verification import run_changed
from condconv.counting import format_table
from condconv.counting.tracing import Trace, trace
from condconv.errors import UsageError, check_type, shown
from condconv.nn import ConditionalLayer, Experts
from condconv.nn.choice import LayerChoice, choose_named
from condconv.nn.conditional import conditional_layers

_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer before and after.

    Attributes:
        name: Its name in the model.
        bytes_before: Bytes of its experts in fp32.
        bytes_after: Bytes of its quantized experts, scales included.
        error: Norm of the rounding error over the norm of the experts; 0 for experts of zeros.
    """

    name: str
    bytes_before: int
    bytes_after: int
    error: float


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize_experts_` did; `print` it for a table.

    Attributes:
        dtype: `"int8"` or `"bfloat16"`.
        layers: The quantized layers, in the model's order.
        output_error: Norm of the output's change on the example over the norm of the output; `None` if the model was
            not run.
        notes: Further remarks.
    """

    dtype: str
    layers: tuple[QuantizedLayer, ...]
    output_error: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Return the bytes of all these experts in fp32."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Return the bytes of all these experts now, scales included."""
        return sum(layer.bytes_after for layer in self.layers)

    def __str__(self) -> str:
        """Return a table with a line for each layer, the totals with the largest error, the output's, and the notes."""
        total = QuantizedLayer("total", self.bytes_before, self.bytes_after, max(layer.error for layer in self.layers))
        rows = [
            (layer.name, self.dtype, f"{layer.bytes_before:,}", f"{layer.bytes_after:,}", f"{layer.error:.2e}")
            for layer in (*self.layers, total)
        ]
        lines = [format_table(("layer", "experts", "bytes", "-> bytes", "relative error"), rows)]
        lines += [] if self.output_error is None else [f"relative change of the output: {self.output_error:.2e}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def quantize_experts_(
    model: nn.Module,
    dtype: str = "int8",
    *,
    layers: LayerChoice | None = None,
    skip: LayerChoice | None = None,
    example_input: Any = None,
) -> QuantizationReport:
    """Store the experts of conditional layers in int8 or bfloat16, in place, for inference.

    At a small batch experts are most of what a network reads. On the CPU compiled kernels read quantized experts
    directly; everything else widens them at each call, which saves memory but no time. Routing functions, biases and
    all other layers do not change. Quantized experts keep their dtype when the model changes its own, and have no
    gradients: call the model under `torch.no_grad()`. The model is run before and after: its layers must get inputs of
    the same dtypes, and its outputs must have the same shapes and dtypes and be finite. How far values move is
    reported, not judged, since no bound is known.

    To load a quantized network, create it, call this with the same arguments, then `load_state_dict`.

    Args:
        model: A network with trained conditional layers, in fp32; or one such layer.
        dtype: `"int8"`: a quarter of the bytes; each output channel of each expert has a scale, its largest number over
            127, and the error of a number is at most half the scale. `"bfloat16"`: half the bytes; the error is at most
            1/256 of the number.
        layers: Which layers, as a `LayerChoice`: patterns of their names, such as `"blocks.1*"`, or a function of name
            and module; `None` for all.
        skip: Which of them stay as they are; `None` for none.
        example_input: A tensor or a tuple of arguments for the model; `None` to use an image of the usual size. If the
            model fails on that image, it is not checked, and the report notes it. A single layer without an example is
            not checked either.

    Returns:
        The report; `print` it for a table.

    Raises:
        UsageError: There is no such layer or dtype, or a layer cannot be quantized: it is quantized already, is not in
            fp32, is not finite, or shares its experts. Nothing is changed then.
        UsageError: The model does not run as before, for example since it reads the dtype of `layer.experts.weight`; it
            has been restored.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(16, 32, 3, num_experts=4))
        >>> report = quantize_experts_(net)
        >>> report.bytes_before, report.bytes_after  # 18,432 numbers, and 128 scales of 4 bytes
        (73728, 18944)
        >>> with torch.no_grad():
        ...     net(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 6, 6])
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UsageError(f"`dtype` must be one of {', '.join(map(repr, _DTYPES))}, got {shown(dtype)}: take one")
    chosen = _choose(model, layers, skip)
    shared = why_not_shared(model)
    for name, layer in chosen.items():
        reason = layer.experts.why_not_quantize() or shared.get(id(layer))
        if reason is not None:
            raise UsageError(f"`model` must have layers whose experts can be quantized, got {name!r}: {reason}")
    before, dtypes, notes = _watch(model, chosen, example_input)
    with ExitStack() as undo:
        rows = []
        for name, layer in chosen.items():
            experts = layer.experts
            layer.experts = experts.quantize(_DTYPES[dtype])
            undo.callback(setattr, layer, "experts", experts)
            before_and_after = _kernel_bytes(experts), _kernel_bytes(layer.experts)
            rows.append(QuantizedLayer(name, *before_and_after, _relative_error(experts, layer.experts)))
        moved = None
        if before is not None:
            after, _ = run_watched(lambda: run_changed(model, before.example), chosen, dtypes)
            moved = check_rounded(before.output, after.output)
        undo.pop_all()
    return QuantizationReport(dtype, tuple(rows), moved, tuple(notes))


def _watch(
    model: nn.Module, layers: Mapping[str, ConditionalLayer], example_input: Any
) -> tuple[Trace | None, dict[str, set[torch.dtype]], list[str]]:
    """Run the model on the example, or on a guess; a guess that fails is noted, an example that fails is raised."""
    if example_input is None and isinstance(model, ConditionalLayer):
        return None, {}, []
    try:
        return (*run_watched(lambda: trace(model, example_input), layers), [])
    except UsageError as error:
        if example_input is not None:
            raise
        return None, {}, [f"output not checked: {error}"]


def _choose(model: nn.Module, choice: LayerChoice | None, skip: LayerChoice | None) -> dict[str, ConditionalLayer]:
    """Return the layers that are chosen."""
    layers = conditional_layers(model)
    if not layers:
        raise UsageError(
            f"`model` must have conditional layers, got {type(model).__name__} without any: only experts are quantized"
        )
    return choose_named(layers, choice, skip, kind="conditional layers")


def _kernel_bytes(experts: Experts) -> int:
    """Return the bytes of what kernels are made of, scales too, without biases."""
    return sum(each.nbytes for name, each in experts.state_dict().items() if name != "bias")


@torch.no_grad()
def _relative_error(before: Experts, after: Experts) -> float:
    """Return the norm of what changed in the kernels over their norm; computed in fp64."""
    each = torch.eye(before.num_experts, dtype=torch.float64, device=next(before.parameters()).device)
    exact, stored = before.mix(each)[0], after.mix(each)[0]
    norm = exact.norm().item()
    return (stored - exact).norm().item() / norm if norm else 0.0
