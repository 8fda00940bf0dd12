"""Training and evaluation of image classifiers, thin, on accelerate and timm.

`TrainConfig` needs the core install only; the rest needs the extra `train` and is imported at first
use, so that the command line can describe its options without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from condconv.errors import require_extra
from condconv.train.config import TrainConfig

if TYPE_CHECKING:
    from condconv.train.checkpoint import Checkpoint, load_checkpoint
    from condconv.train.data import ImageData, open_data
    from condconv.train.evaluate import Evaluation, evaluate_checkpoint, image_transform
    from condconv.train.freezing import FrozenCheckpoint, freeze_checkpoint
    from condconv.train.inspection import Inspection, Reading, inspect_checkpoint
    from condconv.train.loop import train
    from condconv.train.metrics import EpochMetrics, TrainResult
    from condconv.train.preprocessing import Preprocessing
    from condconv.train.rebuild import load_network, load_trained

__all__ = [
    "Checkpoint",
    "EpochMetrics",
    "Evaluation",
    "FrozenCheckpoint",
    "ImageData",
    "Inspection",
    "Preprocessing",
    "Reading",
    "TrainConfig",
    "TrainResult",
    "evaluate_checkpoint",
    "freeze_checkpoint",
    "image_transform",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_network",
    "load_trained",
    "open_data",
    "train",
]

_HOME = {
    "Checkpoint": "checkpoint",
    "EpochMetrics": "metrics",
    "Evaluation": "evaluate",
    "FrozenCheckpoint": "freezing",
    "ImageData": "data",
    "Inspection": "inspection",
    "Preprocessing": "preprocessing",
    "Reading": "inspection",
    "TrainResult": "metrics",
    "evaluate_checkpoint": "evaluate",
    "freeze_checkpoint": "freezing",
    "image_transform": "evaluate",
    "inspect_checkpoint": "inspection",
    "load_checkpoint": "checkpoint",
    "load_network": "rebuild",
    "load_trained": "rebuild",
    "open_data": "data",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("timm", "torchvision", "accelerate", "safetensors", "tqdm"):
        require_extra(module, "train")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
