"""Store weights in few bits and widen them in the graph, so that the arithmetic stays in fp32.

The graph has `(stored * scale).reshape(shape)` in place of a weight. A runtime computes it once when it loads the file,
or keeps the weight narrow in memory and widens it when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from condconv.convert.surgery import replace
from condconv.ops.quantized import quantize

WEIGHTS = ("float32", "bfloat16", "int8")
_SMALLEST = 1024  # values; what a smaller weight saves is not worth an operator
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Stored(nn.Module):
    """A layer whose weight is stored in few bits.

    Args:
        layer: A layer of `torch.nn` with a weight, which is removed from it.
        stored: The weight, `[R, N / R]` with a scale, in its own shape without.
        scale: `[R, 1]`, or `None` for 1.
    """

    scale: Tensor | None

    def __init__(self, layer: Any, stored: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.shape = layer.weight.shape
        self.stored = nn.Parameter(stored, requires_grad=False)
        self.register_buffer("scale", scale)
        del layer.weight
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        """The weight in fp32."""
        wide = self.stored.to(torch.float32)
        return wide if self.scale is None else (wide * self.scale).reshape(self.shape)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias; attention reads weight and bias of its last layer without calling it."""
        bias: Tensor | None = self.layer.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return torch.func.functional_call(self.layer, {"weight": self.weight}, (x,))


def store_weights_(model: nn.Module, weights: str) -> None:
    """Store the weights of convolutions and linear layers in few bits, in place; routing functions stay as they are.

    int8 is symmetric, with a scale for each output channel, which the experts of a layer share.

    Args:
        model: Rewritten for export: each weight is a parameter of a `torch.nn` layer inside it.
        weights: `"bfloat16"` or `"int8"`.
    """
    for layer in [*_layers_to_store(model)]:
        weight = layer.weight.detach()
        if weights == "bfloat16":
            replace(model, layer, Stored(layer, weight.to(torch.bfloat16), None))
            continue
        rows = weight.reshape(getattr(layer, "rows", weight.shape[0]), -1)
        stored, scale = quantize(rows[None], groups=1, transposed=False)  # as one expert of R outputs
        replace(model, layer, Stored(layer, stored[0], scale[0, :, None]))


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Make the stored weights of a model plain fp32 parameters again, inside the block only."""
    with ExitStack() as undo:
        for module in [*model.modules()]:
            if isinstance(module, Stored):
                module.layer.weight = nn.Parameter(module.weight, requires_grad=False)
                undo.callback(delattr, module.layer, "weight")
                undo.callback(replace(model, module, module.layer))
        yield


def _layers_to_store(model: nn.Module) -> Iterator[Any]:
    for name, module in model.named_modules():
        is_router = "routing_fn" in name.split(".")
        if isinstance(module, _LAYERS) and not is_router and module.weight.numel() >= _SMALLEST:
            yield module
