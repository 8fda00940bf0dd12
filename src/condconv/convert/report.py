"""The report of a conversion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from condconv.convert.record import Conversion
from condconv.counting import CostReport, format_table
from condconv.counting.parameters import count_parameters
from condconv.files.atomic import write_atomic
from condconv.nn import ConditionalLayer, RoutingSlot
from condconv.nn.conditional import own_parameters
from condconv.nn.experts import ExpertsOption
from condconv.nn.factory import Routing


@dataclass(frozen=True)
class ConvertedLayer:
    """One layer before and after.

    Attributes:
        name: Its name in the model.
        old: The old layer, as in `repr`.
        new: The new layer.
        routing: Where its routing weights come from.
        old_params: Parameters before.
        new_params: Parameters after, routing not included.
        old_madds: Multiply-adds for one example before; `None` if they could not be counted.
        new_madds: Multiply-adds after, routing not included.
    """

    name: str
    old: str
    new: str
    routing: str
    old_params: int
    new_params: int
    old_madds: int | None
    new_madds: int | None


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_` did; `print` it for a table.

    Attributes:
        layers: Layers converted, in the order in which they run.
        refused: Selected layers that stayed static: reasons by name.
        notes: Further remarks.
        before: Costs of the model before; `None` if they could not be counted.
        after: Costs of the model after.
        params_before: Parameters of the model before.
        params_after: Parameters of the model after, routing functions included.
        conversion: The data that `convert_like_` repeats.
        method: The published method that was asked for by name, or `None`.
    """

    layers: tuple[ConvertedLayer, ...]
    refused: dict[str, str]
    notes: tuple[str, ...]
    before: CostReport | None
    after: CostReport | None
    params_before: int
    params_after: int
    conversion: Conversion
    method: str | None = None

    @property
    def made_of(self) -> str:
        """The method that was asked for, the number of experts, and `experts` and `routing` as `convert_` takes them.

        What is not text has the name of its function or class.
        """
        experts, routing = map(_text, (self.conversion.experts, self.conversion.routing))
        method = "" if self.method is None else f"method: {self.method}; "
        return f"{method}experts per layer: {self.conversion.num_experts}, {experts}; routing: {routing}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `convert_like_` needs, as numbers and text in dicts and lists, for a configuration or JSON."""
        return self.conversion.to_dict()

    def save(self, path: str | Path) -> None:
        """Write what `convert_like_` needs to a JSON file.

        Raises:
            UsageError: It cannot be written.
        """
        write_atomic(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        """Return what layers are made of, a table of them with the model's totals, what was refused, and the notes."""
        rows = [
            (
                layer.name,
                f"{layer.old} -> {layer.new}",
                layer.routing,
                f"{layer.old_params:,}",
                f"{layer.new_params:,}",
                _number(layer.old_madds),
                _number(layer.new_madds),
            )
            for layer in self.layers
        ]
        madds = [None if report is None else report.total.madds for report in (self.before, self.after)]
        params = (f"{self.params_before:,}", f"{self.params_after:,}")
        rows.append(("model", f"{len(self.layers)} converted", "", *params, _number(madds[0]), _number(madds[1])))
        header = ("layer", "old -> new", "routing", "params", "-> params", "MADDs", "-> MADDs")
        lines = [self.made_of, format_table(header, rows)]
        lines += [] if self.after is None else [self.after.input_note]
        lines += [f"not converted: {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def describe_layer(
    name: str, old: nn.Module, new: ConditionalLayer, before: CostReport | None, after: CostReport | None
) -> ConvertedLayer:
    """Return the row of one layer."""
    costs = [
        None if report is None else next((cost.madds for cost in report.layers if cost.name == name), 0)
        for report in (before, after)
    ]
    params = [count_parameters(own_parameters(layer)) for layer in (old, new)]
    slot = isinstance(new.routing_fn, RoutingSlot)
    routing = new.routing_fn.extra_repr() if slot else type(new.routing_fn).__name__
    kinds = (type(old).__name__, f"{type(new).__name__} x{new.num_experts}")
    return ConvertedLayer(name, *kinds, routing, *params, *costs)


def _text(option: ExpertsOption | Routing) -> str:
    return option if isinstance(option, str) else getattr(option, "__name__", type(option).__name__)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
