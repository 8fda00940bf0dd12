"""The targets: a row passes or misses."""

from __future__ import annotations

from condconv.lab.bench.cases import LAYERS, Case, LayerCase
from condconv.lab.bench.contender import Conditions

_B0 = "tf_efficientnet_cc_b0_8e"
CALL_RATIO = 2.5
"""The most that a call may take, in multiples of torch's convolution, for a layer too small to take time."""


def time_target(case: Case, batch: int, conditions: Conditions) -> float | None:
    """Return the most that a case may take, as a multiple of its static twin's time; `None` without a target.

    Layers of the fixed list, inference on the CPU: 1.5 at batch 1, and 1.25 (HW + E) / HW from batch 8 on. Networks,
    inference on the CPU: 1.15. EfficientNet-B0 with 8 experts: 1.2 in a training step on the CPU with batch 16; on a
    GPU with batch 128 in bf16 0.9 of the static images per second in inference, 0.85 in training.
    """
    on_cpu, inference = conditions.device == "cpu", conditions.mode == "inference"
    if isinstance(case, LayerCase):
        if case not in LAYERS or not on_cpu or not inference or 1 < batch < 8:
            return None
        return 1.5 if batch == 1 else 1.25 * case.bound
    if on_cpu and inference:
        return 1.15
    if on_cpu and (case.name, batch) == (_B0, 16):
        return 1.2
    if not on_cpu and (case.name, batch, conditions.dtype) == (_B0, 128, "bf16"):
        return 1 / 0.9 if inference else 1 / 0.85
    return None


def memory_target(case: Case, conditions: Conditions) -> int | None:
    """Return the most bytes above the static network's in training: experts, their gradients, and a tenth; or `None`.

    Parameters and their gradients are fp32 in training, under autocast too.
    """
    if isinstance(case, LayerCase) or conditions.mode != "training":
        return None
    return round(1.1 * 2 * case.expert_bytes)


def verdict(value: float | None, target: float | None) -> str | None:
    """Return "pass" or "miss", or `None` without a target or a value."""
    if value is None or target is None:
        return None
    return "pass" if value <= target else "miss"
