"""Parameters, multiply-adds and bytes of a model, layer by layer, from shapes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from condconv.counting.parameters import count_parameters
from condconv.counting.tracing import Call, Trace, trace
from condconv.errors import check_type
from condconv.nn import ConditionalLayer
from condconv.nn.classes import is_conv, static_class
from condconv.nn.conditional import own_parameters
from condconv.nn.float32_linear import Float32Linear


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer for one example.

    Attributes:
        name: Its name in the model; "(other)" for the parameters of all layers without multiply-adds, "total" for the
            sum.
        kind: Class of the layer.
        params: Number of its own parameters.
        madds: Multiply-adds: the convolution or product, and for a conditional layer the mixing of its experts.
        expert_bytes: Bytes of the experts, their biases and scales; 0 for a static layer.
        kernel_bytes: Bytes of one example's mixed kernel, if an implementation stores it; 0 for a static layer.
    """

    name: str
    kind: str
    params: int
    madds: int
    expert_bytes: int = 0
    kernel_bytes: int = 0


@dataclass(frozen=True)
class CostReport:
    """The costs of a model; `print` it for a table.

    Attributes:
        layers: Layers with multiply-adds in the order in which they run, then "(other)".
        total: Their sum.
        example_shape: Shape of the input that was counted, without the batch; empty if it has no tensor.
    """

    layers: tuple[LayerCost, ...]
    total: LayerCost
    example_shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return a table with one line per layer, and the input that it is for."""
        rows = [
            (c.name, c.kind, f"{c.params:,}", f"{c.madds:,}", f"{c.expert_bytes:,}", f"{c.kernel_bytes:,}")
            for c in (*self.layers, self.total)
        ]
        table = format_table(("layer", "kind", "params", "MADDs", "expert bytes", "kernel bytes"), rows)
        return f"{table}\n{self.input_note}"

    @property
    def input_note(self) -> str:
        """The input that the multiply-adds are for, in words; it may have been guessed."""
        sizes = " x ".join(map(str, self.example_shape))
        return f"MADDs are for one example of {sizes}" if sizes else "MADDs are for one example"


def count(model: nn.Module, example_input: Any = None) -> CostReport:
    """Count parameters, multiply-adds (MADDs) and bytes of a model.

    MADDs are the convolutions, linear layers (those of the routing too) and `E * P` for mixing E experts of P
    parameters; biases of static layers, normalisation, activations, pooling, attention and layers of other libraries
    are not counted. `torch.utils.flop_counter.FlopCounterMode` reports twice the MADDs for a convolutional network
    whose conditional layers mix kernels.

    Args:
        model: Any module; does not change. It is run once in evaluation mode without gradients.
        example_input: A tensor `[B, ...]`, or a tuple of arguments; `None` for
            `condconv.counting.tracing.default_example`.
            MADDs and kernel bytes are per example.

    Returns:
        The report.

    Raises:
        ValueError: No example is given, and none can be guessed or the model fails on the guess.

    Source:
        CondConv, section 3. The paper's own figures are the TF-1 profiler's, mostly 0.1 to 1.4 % higher.

    Example:
        >>> report = count(condconv.CondConv2d(8, 16, 3, bias=False, num_experts=4), torch.zeros(1, 8, 10, 10))
        >>> report.total.madds  # 64 pixels x 1152, mixing 4 x 1152, routing 8 x 4
        78368
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    return count_trace(model, trace(model, example_input))


def count_trace(model: nn.Module, watched: Trace) -> CostReport:
    """Return the same as `count`, from a forward pass of the model that was traced already."""
    costs: dict[nn.Module, LayerCost] = {}
    calls = watched.calls
    batch, *example_shape = next((call.input_shape for call in calls if call.input_shape), (1,))
    for call in calls:
        cost = _layer_cost(call, batch)
        if cost is not None:
            before = costs.get(call.module)
            costs[call.module] = cost if before is None else _add(cost, before)
    counted = {id(p) for module in costs for p in own_parameters(module)}
    other = count_parameters(p for p in model.parameters() if id(p) not in counted)
    layers = (*costs.values(), LayerCost("(other)", "", other, 0))
    total = LayerCost(
        "total",
        "",
        count_parameters(model.parameters()),
        sum(cost.madds for cost in layers),
        sum(cost.expert_bytes for cost in layers),
        sum(cost.kernel_bytes for cost in layers),
    )
    return CostReport(layers, total, tuple(example_shape))


def _add(cost: LayerCost, before: LayerCost) -> LayerCost:
    """Add the multiply-adds of another call of a module; its parameters and bytes count once."""
    return LayerCost(cost.name, cost.kind, cost.params, cost.madds + before.madds, cost.expert_bytes, cost.kernel_bytes)


def _layer_cost(call: Call, batch: int) -> LayerCost | None:
    module: Any = call.module
    if not call.input_shape or not call.output_shape or not batch:
        return None
    own = count_parameters(own_parameters(module))
    kind = type(module).__name__
    if isinstance(module, ConditionalLayer):
        # All windows or frames that a model folds into the batch of a layer belong to the example, with a kernel each.
        inputs, outputs = (_places(module, shape) // batch for shape in (call.input_shape, call.output_shape))
        cost = module.experts.cost(inputs, outputs, max(1, call.input_shape[0] // batch))
        return LayerCost(call.name, kind, own, *cost)
    if static_class(module) is not None or isinstance(module, Float32Linear):
        shape = call.input_shape if getattr(module, "transposed", False) else call.output_shape
        return LayerCost(call.name, kind, own, module.weight.numel() * (_places(module, shape) // batch))
    return None


def _places(module: Any, shape: tuple[int, ...]) -> int:
    """Return the number of pixels of maps `[B, C, *S]`, or of rows `[B, ..., C]`, over the batch."""
    return shape[0] * prod(shape[2:]) if is_conv(module) else prod(shape[:-1])


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header, the first two columns left-aligned and the others right-aligned."""
    table = [tuple(header), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
