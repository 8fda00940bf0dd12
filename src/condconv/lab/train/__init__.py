"""A short training loop for image classifiers, on accelerate and timm.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condconv.lab.config import TrainConfig
from condconv.lab.face import find

if TYPE_CHECKING:
    from condconv.lab.train.loop import train

__all__ = [
    "TrainConfig",
    "train",
]

_HOMES = {
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)
