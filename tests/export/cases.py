"""Small networks, one for each kind of layer, that all tests of exports share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import condconv
from condconv.counting.tracing import default_example
from condconv.export.verification import varied_inputs, worst_error
from condconv.nn import (
    CondConv1d,
    CondConv2d,
    CondConvTranspose2d,
    CondLinear,
    ConstantRouting,
    SigmoidRouting,
    SoftmaxRouting,
    route_block_,
)

IMAGE = (6, 9, 10)


def conv(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return functools.partial(CondConv2d, *arguments, **{"num_experts": 3, **options})


# name: (layer, shape of its input). Sizes are odd where a stride makes it matter.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1x1": (conv(6, 10, 1, bias=False), IMAGE),
    "1x1-stride-bias": (conv(6, 10, 1, stride=2), IMAGE),
    "1x1-groups": (conv(6, 10, 1, groups=2), IMAGE),
    "depthwise-3": (conv(6, 6, 3, padding=1, groups=6, num_experts=5), IMAGE),
    "depthwise-5-same-stride": (conv(6, 6, 5, stride=2, padding="tf_same", groups=6), IMAGE),
    "dense-3": (conv(6, 10, 3, padding=1), IMAGE),
    "dense-3-same-stride": (conv(6, 10, 3, stride=2, padding="tf_same", bias=False), IMAGE),
    "dense-dilation": (conv(6, 10, 3, padding=2, dilation=2), IMAGE),
    "dense-reflect": (conv(6, 10, 3, padding=1, padding_mode="reflect"), IMAGE),
    "grouped-3": (conv(6, 10, (3, 2), padding=(0, 1), groups=2), IMAGE),
    "multiplier": (conv(6, 12, 3, groups=6), IMAGE),
    "softmax": (conv(6, 10, 3, routing=functools.partial(SoftmaxRouting, temperature=2.0)), IMAGE),
    "top-k": (conv(6, 10, 1, routing="top_k"), IMAGE),
    "one-expert": (conv(6, 10, 3, num_experts=1), IMAGE),
    "constant": (conv(6, 10, 3, routing=functools.partial(ConstantRouting, weights=[0.5, -1.0, 2.0])), IMAGE),
    "transposed": (functools.partial(CondConvTranspose2d, 6, 10, 3, stride=2, num_experts=3), IMAGE),
    "one-dimensional": (functools.partial(CondConv1d, 6, 10, 3, padding=1, num_experts=3), (6, 11)),
    "linear": (functools.partial(CondLinear, 6, 10, num_experts=3), (6,)),
    "linear-rows": (functools.partial(CondLinear, 6, 10, num_experts=3), (4, 6)),
}


def sharpen_(model: nn.Module) -> nn.Module:
    """Make routing functions tell inputs apart clearly, in place; give biases and norms values of their own."""
    for name, parameter in model.named_parameters():
        if name.endswith(".fc.weight"):
            nn.init.normal_(parameter, std=1.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def layer_case(name: str) -> tuple[nn.Module, Tensor]:
    """Return a layer's network, in evaluation mode, and two examples for it; images are normalised after it."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    following: list[nn.Module] = (
        [nn.BatchNorm2d(layer.experts.spec.out_channels), nn.SiLU()] if len(shape) == 3 else [nn.Tanh()]
    )
    return sharpen_(nn.Sequential(layer, *following)).eval(), torch.randn(2, *shape)


class Separable(nn.Module):
    """A block whose two layers share a routing function."""

    def __init__(self, channels: int, out_channels: int, num_experts: int = 3) -> None:
        super().__init__()
        self.depthwise = CondConv2d(channels, channels, 3, padding=1, groups=channels, num_experts=num_experts)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = CondConv2d(channels, out_channels, 1, bias=False, num_experts=num_experts)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(torch.relu(self.norm(self.depthwise(x))))


def small_network(classes: int = 4) -> tuple[nn.Module, Tensor]:
    """Return a classifier of 3 x 12 x 11 images with a routed block, and two images."""
    torch.manual_seed(0)
    block = Separable(8, 12)
    route_block_(block, SigmoidRouting(8, 3), [block.depthwise, block.pointwise])
    stem = [CondConv2d(3, 8, 3, stride=2, padding=1, num_experts=3), nn.BatchNorm2d(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes)]
    return sharpen_(nn.Sequential(*stem, block, *head)).eval(), torch.randn(2, 3, 12, 11)


class AllLayers(nn.Module):
    """Every kind of layer side by side, each on the same image in a shape it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: layer_case(name)[0] for name in LAYERS})

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.parts(x), 1)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Return the output of each layer, `[B, N]`, in the order of `LAYERS`."""
        inputs = {"linear": x.mean((2, 3)), "linear-rows": x.flatten(2).mT, "one-dimensional": x.flatten(2)}
        return [branch(inputs.get(name, x)).flatten(1) for name, branch in self.branches.items()]


def all_layers() -> tuple[AllLayers, Tensor]:
    """Return a network of all layers, in evaluation mode, and two images for it."""
    return AllLayers().eval(), torch.randn(2, *IMAGE)


@torch.no_grad()
def errors_by_layer(run: Callable[[Tensor], Tensor], network: AllLayers, batches: Sequence[int]) -> dict[str, float]:
    """Return the worst error of each layer in a file that holds them all.

    Args:
        run: The file, `[B, ...]` to `[B, N]`.
        network: What it was made from.
        batches: Sizes to run.
    """
    exact = copy.deepcopy(network).double()
    errors = dict.fromkeys(LAYERS, 0.0)
    for batch in batches:
        x = varied_inputs(torch.zeros(1, *IMAGE), batch)
        expected = exact.parts(x.double())
        found = run(x).split([each.shape[1] for each in expected], 1)
        for name, one, other in zip(LAYERS, found, expected, strict=True):
            errors[name] = max(errors[name], worst_error(one, other))
    return errors


def paper_network(name: str) -> nn.Module:
    """Return a network of the paper at its full size, in evaluation mode, as if it were trained.

    Routing tells images apart, and norms hold the statistics of some images: where activations grow or vanish from
    layer to layer, rounding hides everything else.
    """
    torch.manual_seed(0)
    network = condconv.create_model(name).train()
    for module in network.modules():
        if isinstance(module, SigmoidRouting):
            sharpen_(module)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    with torch.no_grad():
        network(varied_inputs(default_example(network), 8))
    return network.eval()
