"""A short training loop for image classifiers, on accelerate and timm.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condconv._lazy import public_names
from condconv.lab.config import TrainConfig

if TYPE_CHECKING:
    from condconv.lab.train.loop import train

__all__ = [
    "TrainConfig",
    "train",
]

__getattr__, __dir__ = public_names(__name__, __all__, ("loop",), extra="train")
