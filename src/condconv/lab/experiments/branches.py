"""Networks with parallel branches: mixtures of whole stages, the coarser alternatives to conditional convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.lab.config import TrainConfig
from condconv.lab.rules import one_of, whole
from condconv.lab.saved import network as networks
from condconv.nn import SigmoidRouting

BRANCHES = "branches"
"""Name of these networks in a run's settings; the zoo has none of it."""


class Branches(nn.Module):
    """Parallel copies of one part of a network, whose outputs are averaged, or weighted by the input.

    Args:
        branches: K modules that take the same input and give outputs of one shape, each with its own weights.
        routing_fn: Gives weights `[B, K]` from the input; `None` for the plain average.

    Source:
        Weighted, this is a mixture of experts whose experts are whole stages and are all run: K times the cost.
    """

    def __init__(self, branches: list[nn.Module], routing_fn: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.routing_fn = routing_fn

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture, `[B, C, H, W]` to `[B, C', H', W']`."""
        outputs = torch.stack([branch(x) for branch in self.branches], dim=1)  # [B, K, C', H', W']
        if self.routing_fn is None:
            return outputs.mean(dim=1)
        weights = self.routing_fn(x).to(outputs.dtype)  # [B, K]
        return torch.einsum("bk...,bk->b...", outputs, weights)


def create_branches(
    base: str, *, branches: int = 4, stages: str = "last", weighted: bool = False, **options: Any
) -> nn.Module:
    """Return a network of the zoo, some of whose stages exist several times.

    Args:
        base: Name of a static network whose stages are the children of `blocks`.
        branches: K, copies of each of these stages; each with its own random initial weights.
        stages: `"last"` or `"all"`.
        weighted: Whether a sigmoid routing on the stage's input weights the branches; otherwise they are averaged.
        **options: Of `condconv.create_model`.

    Raises:
        UsageError: `stages` is neither, or there is no branch.
    """
    from condconv.models import create_model

    one_of("last", "all").check("stages", stages)
    whole(1).check("branches", branches)
    network: Any = create_model(base, **options)
    others: list[Any] = [create_model(base, **options) for _ in range(branches - 1)]
    for index in range(len(network.blocks)) if stages == "all" else [len(network.blocks) - 1]:
        copies = [each.blocks[index] for each in (network, *others)]
        channels = next(each.in_channels for each in copies[0].modules() if isinstance(each, nn.Conv2d))
        network.blocks[index] = Branches(copies, SigmoidRouting(channels, branches) if weighted else None)
    return network


def build(config: TrainConfig, num_classes: int, in_chans: int) -> nn.Module:
    """Build the network of a run: one of the zoo, or one with branches.

    Raises:
        UsageError: The name or an option is unknown.
    """
    if config.model != BRANCHES:
        return networks.build_from_zoo(config, num_classes, in_chans)
    options: dict[str, Any] = dict(config.model_options)
    return create_branches(str(options.pop("base")), num_classes=num_classes, in_chans=in_chans, **options)
