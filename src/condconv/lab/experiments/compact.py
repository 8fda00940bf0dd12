"""The arms of the experiment on whether about one kernel has the gain of several."""

from __future__ import annotations

from typing import Any

from condconv.lab.experiments.design import Arm

WIDTHS = ("113", "131", "150", "175")
"""Of static networks, in percent, besides 100."""


def arms(network: str, num_experts: int) -> tuple[Arm, ...]:
    """Return the arms for one of the networks for small images, such as `"small_dense"`."""
    static = f"{network}, static"

    def arm(label: str, model: str, **options: Any) -> Arm:
        return Arm(f"{network}, {label}", model, options, against=static)

    def experts(label: str, store: str, number: int = num_experts, **options: Any) -> Arm:
        return arm(label, f"{network}_cc_100_{number}e", experts=store, **options)

    alike: dict[str, Any] = {"routing": "constant(learn=True)"}
    return (
        arm("static", f"{network}_100"),
        *(arm(f"static, {width} % wide", f"{network}_{width}") for width in WIDTHS),
        arm("squeeze-and-excitation", f"{network}_100", se=0.25),
        experts("deltas", "deltas"),
        experts("deltas, images alike", "deltas", **alike),
        experts("shared", "shared"),
        experts("shared, images alike", "shared", **alike),
        experts("shared, rank 3", "shared(rank=3)"),  # at most the three channels of an image
        experts("shared, rank 2", "shared(rank=2)"),
        experts("shared, gains", "shared(rank=None, gains=True)"),
        experts("shared, half the experts", "shared", max(2, num_experts // 2)),
    )
