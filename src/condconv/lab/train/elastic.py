"""The step of an elastic run: several members learn from one batch, the smaller ones from the largest."""

from __future__ import annotations

from torch import Tensor

from condconv.lab.data.images import IGNORED
from condconv.lab.train.loss import mean_loss
from condconv.lab.train.run import Run
from condconv.nn.elastic import sandwich, smaller_member


def backward_through_members(run: Run, images: Tensor, targets: Tensor) -> Tensor:
    """Add up the gradients of the largest member's loss and of the smaller ones' distillation; no update.

    The gradient is the mean over members, so that a learning rate means what it does in an ordinary run.

    Args:
        run: Of an elastic network.
        images: `[B, C, S, S]`.
        targets: `[B]` or `[B, classes]`, as in `mean_loss`.

    Returns:
        The loss of the largest member, a scalar.

    Source:
        In-place distillation of universally slimmable networks (arXiv:1903.05134).
    """
    _, *smaller = sandwich(run.members)
    logits: Tensor = run.model(images)
    loss = mean_loss(logits, targets, run.config.label_smoothing)
    share = 1 / (1 + len(smaller))
    run.accelerator.backward(loss * share)
    counts = targets != IGNORED if targets.dim() == 1 else targets.sum(1) > 0
    taught = logits.detach().float().softmax(1) * counts[:, None]
    for number in smaller:
        with smaller_member(run.network, number):
            run.accelerator.backward(mean_loss(run.model(images), taught, 0.0) * share)
    return loss
