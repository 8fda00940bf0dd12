"""The loss of a batch, with and without mixed images."""

from __future__ import annotations

from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor
from torch.nn import functional as F

from condconv.lab.config import TrainConfig
from condconv.lab.data.images import IGNORED


def create_mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    """Return timm's mixup and cutmix as in the settings, or None."""
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)


def mix(mixup: Mixup, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix a batch in place.

    Args:
        mixup: What to do.
        images: `[B, C, S, S]`, B even.
        targets: `[B]`, with `IGNORED` for images that could not be read.

    Returns:
        The images, and their soft targets `[B, classes]`, zero where an image or its partner could not be read.
    """
    counts = targets != IGNORED
    images, soft = mixup(images, targets.clamp(min=0))
    return images, soft * (counts & counts.flip(0))[:, None]  # timm pairs the first image with the last


def mean_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy over the images that could be read; zero, with zero gradients, if none could.

    Args:
        logits: `[B, classes]`.
        targets: `[B]`, smoothed here, or soft ones from `mix`, `[B, classes]`, smoothed already.
        smoothing: Probability mass spread over the wrong classes.
    """
    logits = logits.float()
    if targets.dim() == 2:
        counted = (targets.sum(1) > 0).sum().clamp(min=1)
        total: Tensor = SoftTargetCrossEntropy()(logits, targets) * len(targets)
    else:
        counted = (targets != IGNORED).sum().clamp(min=1)
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
    return total / counted
