"""What `compress_experts_` did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from condconv.counting import format_table


@dataclass(frozen=True)
class CompressedLayer:
    """One layer before and after.

    Attributes:
        name: Its name in the model.
        experts: Its experts now, as `experts=` of a layer; `None` if they were made by a factory.
        bytes_before: Bytes of its experts before.
        bytes_after: Bytes of its experts now.
        error: Root mean square error of the mixed kernel over its root mean square.
    """

    name: str
    experts: str | None
    bytes_before: int
    bytes_after: int
    error: float


@dataclass(frozen=True)
class CompressionReport:
    """What `compress_experts_` did; `print` it for a table.

    Attributes:
        layers: The compressed layers, in the model's order.
        left: Reasons, by name, for chosen layers that stay as they were.
        images: Images over which the routing was measured; `None` if it was assumed.
        params_before: Parameters of the model before.
        params_after: Parameters of the model now.
        repair: Mean divergence from the old network's class probabilities per epoch of repair, in nats.
        notes: Further remarks.
    """

    layers: tuple[CompressedLayer, ...]
    left: Mapping[str, str]
    images: int | None
    params_before: int
    params_after: int
    repair: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def stores(self) -> dict[str, str]:
        """The experts of the compressed layers by name, for `exchange_experts_`."""
        return {layer.name: layer.experts for layer in self.layers if layer.experts is not None}

    def __str__(self) -> str:
        """Return a table with a line for each layer, the totals with the largest error, and what is to be known."""
        rows = [
            (each.name, each.experts or "", f"{each.bytes_before:,}", f"{each.bytes_after:,}", f"{each.error:.3f}")
            for each in self.layers
        ]
        before, after = (sum(getattr(each, name) for each in self.layers) for name in ("bytes_before", "bytes_after"))
        rows.append(("total", "", f"{before:,}", f"{after:,}", f"{max(each.error for each in self.layers):.3f}"))
        lines = [format_table(("layer", "experts", "bytes", "-> bytes", "error of the mixture"), rows)]
        lines.append(f"parameters: {self.params_before:,} -> {self.params_after:,}")
        if self.repair:
            lines.append("repair, nats: " + ", ".join(f"{each:.4f}" for each in self.repair))
        lines += [f"left as it was: {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
