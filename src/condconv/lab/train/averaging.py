"""timm's moving average of the weights, which copies settings instead of averaging them."""

from __future__ import annotations

from timm.utils.model_ema import ModelEmaV3
from torch import nn

_STATISTICS = ("running_mean", "running_var")


def create_average(network: nn.Module, decay: float, *, foreach: bool = True) -> ModelEmaV3:
    """Return an average that starts as a copy of a network.

    The decay rises with the number of updates, as `1 - updates ** (-2 / 3)`, up to `decay`: without that a
    short run would be scored by its initial weights.

    Args:
        network: Plain, on its device, not compiled and not wrapped.
        decay: At most.
        foreach: Whether all tensors are averaged at once; tensors shared out over processes cannot be.
    """
    return ModelEmaV3(network, decay=decay, use_warmup=True, foreach=foreach)


def update_average_(average: ModelEmaV3, network: nn.Module, update: int) -> None:
    """Take a network's weights and batch statistics into the average, in place, after one optimizer update.

    Args:
        average: Of `create_average`.
        network: The network that was updated.
        update: Number of updates so far, counted from 1.
    """
    average.update(network, step=update)
    # An averaged temperature would lag behind its schedule; it belongs to the position, which is copied.
    own = dict(average.module.named_buffers())
    for name, buffer in network.named_buffers():
        if not name.endswith(_STATISTICS):
            own[name].copy_(buffer)
