"""Networks as several runs leave them, their files, and a conditional network to read these into."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import condconv
from condconv.nn import ConstantRouting

from .networks import randomise

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


def small_net(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1, bias=bias),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def runs(count: int, bias: bool = False, same_trunk: bool = True) -> list[nn.Sequential]:
    """Return networks as independent runs leave them: nothing alike but, if asked, the layers without experts."""
    nets = [small_net(bias) for _ in range(count)]
    for net in nets:
        randomise(net)
    if same_trunk:
        for net in nets[1:]:
            net[0].load_state_dict(nets[0][0].state_dict())
            net[1].load_state_dict(nets[0][1].state_dict())
    return [net.double() for net in nets]


def conditional_net(count: int, bias: bool, weights: list[float] | None = None) -> nn.Sequential:
    model = small_net(bias)
    routing = "sigmoid" if weights is None else (lambda c, e: ConstantRouting(c, e, weights=weights))
    where = condconv.select.depth(0.3)
    condconv.convert_(
        model, count, layers=where, classifier=True, routing=routing, experts="dense", example_input=IMAGE.float()
    )
    return model.double().eval()


def save(nets: list[nn.Module], folder: Path) -> list[Path]:
    paths = [folder / f"{index}.pth" for index in range(len(nets))]
    for net, path in zip(nets, paths, strict=True):
        torch.save(net.state_dict(), path)
    return paths
