"""The one loop that runs a classifier over images: recordings, interventions and accuracies are taken from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from condconv.errors import check_type


@torch.no_grad()  # not inference mode: FSDP keeps what it gathers here for training, which may not use such tensors
def outputs(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run a network over batches, without gradients.

    Args:
        network: In evaluation mode.
        batches: Images `[B, C, S, S]` and classes `[B]`; negative classes mark images that could not be read.
        device: Device of the network's input; None for that of its parameters.

    Yields:
        Images and classes on that device, and the network's output.
    """
    check_type("batches", batches, Iterable, "hold pairs of images and classes", "give a data loader")
    device = device or next(network.parameters()).device
    for images, targets in batches:
        images = images.to(device)
        yield images, targets.to(device), network(images)
