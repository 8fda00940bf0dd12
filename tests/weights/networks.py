"""Networks with weights in which every tensor matters, and comparisons of their outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import condconv
from condconv.nn import ConditionalLayer, RoutingFunction


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Draw what starts constant, and give batch norms the statistics of images, so that every layer matters."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(0, 0.2)
        if isinstance(module, nn.Linear) and "routing_fn" in name:
            module.weight.normal_(0, 0.3)
            module.bias.normal_()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    stem = next(module for module in model.modules() if isinstance(module, (_ConvNd, ConditionalLayer)))
    model.train()(torch.randn(8, stem.in_channels, 64, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_var.clamp_(min=norm.running_var.mean() / 4)  # a dead channel would blow rounding up
    return model.eval()


@torch.no_grad()
def routing_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the weights of each routing function for some images."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, __, weights: seen.append(weights))
        for module in model.modules()
        if isinstance(module, RoutingFunction)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def assert_same_logits(model: nn.Module, expected: nn.Module, *sizes: tuple[int, int], channels: int = 3) -> None:
    """Compare outputs for `(batch, size)` inputs in fp64, where rounding stays small in deep random networks too."""
    model.double().eval()
    expected.double().eval()
    for batch, size in sizes:
        x = torch.randn(batch, channels, size, size, dtype=torch.float64)
        wanted = expected(x)
        scale = wanted.abs().max().item()
        assert scale > 1e-3
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-9 * scale)


class Block(nn.Module):
    """A depthwise and a pointwise convolution, each with its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.depthwise(x)).relu()
        return self.norm2(self.pointwise(x)).relu()


class SmallNet(nn.Module):
    """A stem, three blocks and a classifier: 1 + 3 * 2 convolutions and as many norms."""

    def __init__(self, width: int, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.classifier = nn.Linear(2 * width, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))


def small(
    num_experts: int = 0,
    *,
    where: str = "blocks.[12].*",
    routing: Any = "sigmoid",
    experts: str = "dense",
    classifier: bool = True,
    width: int = 8,
    num_classes: int = 10,
    in_chans: int = 3,
) -> nn.Module:
    """Return a small network, whose last two blocks and classifier have experts that start at random, if any have."""
    model = SmallNet(width, num_classes, in_chans)
    if num_experts:
        condconv.convert_(
            model,
            num_experts,
            layers=where,
            routing=routing,
            experts=experts,
            scope="block",
            classifier=classifier and num_classes > 0,
            example_input=torch.zeros(1, in_chans, 32, 32),
            init="random",
        )
    return model


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what a network holds, to see later that nothing was changed."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
