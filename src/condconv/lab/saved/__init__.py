"""Trained networks on disk, and what is made from them: evaluation, reports, static and compressed networks.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condconv._lazy import public_names

if TYPE_CHECKING:
    from condconv.lab.saved.budget import Budget, ScoredMember, score_members
    from condconv.lab.saved.checkpoint import Checkpoint, load_checkpoint
    from condconv.lab.saved.compressing import CompressedCheckpoint, compress_checkpoint
    from condconv.lab.saved.evaluate import Evaluation, evaluate_checkpoint, image_transform
    from condconv.lab.saved.inspection import Inspection, inspect_checkpoint
    from condconv.lab.saved.making_static import StaticCheckpoint, make_checkpoint_static
    from condconv.lab.saved.metrics import EpochMetrics, TrainResult
    from condconv.lab.saved.reading import Reading
    from condconv.lab.saved.rebuild import load_network, load_trained

__all__ = [
    "Budget",
    "Checkpoint",
    "CompressedCheckpoint",
    "EpochMetrics",
    "Evaluation",
    "Inspection",
    "Reading",
    "ScoredMember",
    "StaticCheckpoint",
    "TrainResult",
    "compress_checkpoint",
    "evaluate_checkpoint",
    "image_transform",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_network",
    "load_trained",
    "make_checkpoint_static",
    "score_members",
]

__getattr__, __dir__ = public_names(
    __name__,
    __all__,
    ("metrics", "checkpoint", "rebuild", "reading", "evaluate", "inspection", "making_static", "compressing", "budget"),
    extra="train",
)
