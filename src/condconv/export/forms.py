"""Forms of a conditional layer: ways to write it in the operators that a runtime has.

A form is made from one layer in evaluation mode and called as `form(x, routing_weights)`. It computes the same as the
layer for given weights, and holds its experts as static weights of ordinary `torch.nn` layers, in the order in which
the graph reads them: some runtimes require this, and none has to rearrange them when a file is loaded.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from condconv.errors import UsageError, shown
from condconv.export.geometry import Geometry
from condconv.nn import CondConv2d, ConditionalLayer, CondLinear
from condconv.nn.experts.deltas import one_and_centred
from condconv.nn.experts.parts import along


class Mixer(nn.Linear):
    """A linear map from routing weights `[B, E]` to mixed kernels `[B, N]`; its weight holds the experts, `[N, E]`.

    Attributes:
        rows: Number of equal parts of N that share a scale when the weight is stored in few bits: the output channels.
    """

    def __init__(self, experts: Tensor, rows: int) -> None:
        super().__init__(experts.shape[0], experts[0].numel(), bias=False, device="meta")
        self.weight = nn.Parameter(experts.detach().flatten(1).T.contiguous())
        self.rows = rows


class MixedBias(nn.Module):
    """The sum that a layer adds to its output `[B, O]`: the mixed biases of its experts, and a folded norm's shift."""

    def __init__(self, layer: ConditionalLayer) -> None:
        super().__init__()
        bias = layer.experts.bias
        self.mixer = None if bias is None else Mixer(bias, layer.experts.spec.out_channels)
        self.folded_bias = None if layer.folded_bias is None else nn.Parameter(layer.folded_bias.detach().clone())

    def forward(self, y: Tensor, routing_weights: Tensor) -> Tensor:
        """Add to y, `[B, O, *S]`."""
        trailing = (None,) * (y.dim() - 2)
        if self.mixer is not None:
            y = y + self.mixer(routing_weights)[(..., *trailing)]
        return y if self.folded_bias is None else y + self.folded_bias[(..., *trailing)]


def add(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors, one after the other."""
    return functools.reduce(operator.add, terms)


class Convolution(nn.Module):
    """The base of the forms that mix the kernels of a two-dimensional layer."""

    def __init__(self, layer: CondConv2d) -> None:
        super().__init__()
        self.geometry = Geometry.of(layer)
        self.experts = self.make_mixer(layer.experts.kernels().detach())
        self.bias = MixedBias(layer)

    def make_mixer(self, experts: Tensor) -> Mixer:
        """Return the mixer of experts `[E, O, C/G, KH, KW]`, in the order in which `convolve` reads them."""
        return Mixer(experts, self.geometry.out_channels)

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve x `[B, C, H, W]` with the experts mixed by `[B, E]`."""
        return self.bias(self.convolve(x, self.experts(routing_weights)), routing_weights)

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each example with its own mixed kernel, `[B, N]`."""
        raise NotImplementedError

    def multiply(self, kernels: Tensor, columns: Tensor) -> Tensor:
        """Return `[B, O, L]`, the product of `[B, O * K]` and `[B, G * K, L]` within each group."""
        groups, out_channels = self.geometry.groups, self.geometry.out_channels
        inner = columns.shape[1] // groups
        if groups == 1:
            return torch.bmm(kernels.view(-1, out_channels, inner), columns)
        grouped = kernels.view(-1, groups, out_channels // groups, inner)
        return torch.matmul(grouped, columns.unflatten(1, (groups, inner))).flatten(1, 2)


class Bmm(Convolution):
    """A 1 x 1 convolution as a product of matrices, one per example."""

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """See the base."""
        (pixels,) = self.geometry.slices(self.geometry.pad_fully(x))
        return self.multiply(kernels, pixels.flatten(2)).unflatten(2, pixels.shape[2:])


class Unfold(Convolution):
    """Patches as columns, then a product of matrices, one per example."""

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """See the base."""
        shape = self.geometry
        padded = shape.pad_fully(x)
        columns = F.unfold(padded, shape.kernel_size, shape.dilation, 0, shape.stride)
        return self.multiply(kernels, columns).unflatten(2, shape.output_size(padded))


class Shift(Convolution):
    """The sum of one product per tap of the kernel, each with the input shifted accordingly."""

    def make_mixer(self, experts: Tensor) -> Mixer:
        """Return a mixer with the taps outermost."""
        taps_first = experts.flatten(3).permute(0, 3, 1, 2)  # [E, KH*KW, O, C/G]
        return Mixer(taps_first, taps_first[0, ..., 0].numel())

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """See the base."""
        pixels = self.geometry.slices(self.geometry.pad_fully(x))
        size = kernels.shape[1] // len(pixels)
        # Slices: of a split, ExecuTorch's lowering would fix the batch to the example's.
        taps = [kernels[:, start : start + size] for start in range(0, kernels.shape[1], size)]
        if self.geometry.is_depthwise:
            return add(tap[..., None, None] * each for tap, each in zip(taps, pixels, strict=True))
        products = (self.multiply(tap, each.flatten(2)) for tap, each in zip(taps, pixels, strict=True))
        return add(products).unflatten(2, pixels[0].shape[2:])


class Grouped(Convolution):
    """One convolution with the batch folded into its groups; at batch 1 an ordinary one with a computed kernel."""

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """See the base."""
        shape = self.geometry
        out_channels, *rest = shape.kernel_shape
        batch = x.shape[0]
        padded, zeros = shape.pad(x)
        folded = padded.reshape(1, batch * shape.in_channels, *padded.shape[2:])
        weight = kernels.reshape(batch * out_channels, *rest)
        y = F.conv2d(folded, weight, None, shape.stride, zeros, shape.dilation, batch * shape.groups)
        return y.reshape(batch, out_channels, *y.shape[2:])


class Scan(Convolution):
    """A loop over the batch that the graph keeps as a loop, with a convolution inside."""

    def convolve(self, x: Tensor, kernels: Tensor) -> Tensor:
        """See the base."""
        shape = self.geometry
        padded, zeros = shape.pad(x)

        def convolve_one(example: Tensor, kernel: Tensor) -> Tensor:
            weight = kernel.view(shape.kernel_shape)
            return F.conv2d(example[None], weight, None, shape.stride, zeros, shape.dilation, shape.groups)[0]

        def step(carry: Tensor, one: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return carry.clone(), convolve_one(*one)

        if not torch.compiler.is_compiling():  # torch would compile the step for each batch size first
            return torch.stack([convolve_one(*one) for one in zip(padded, kernels, strict=True)])
        # The loop must carry something from step to step.
        return scan(step, x.new_zeros(1), (padded, kernels))[1]


class Own(nn.Module):
    """The operations of the layer itself, for experts that mix no kernel: ordinary layers with constant weights."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.experts, self.folded_bias = layer.experts, layer.folded_bias
        self.geometry = layer.geometry()
        self.dim = -1 if isinstance(layer, CondLinear) else 1  # of the channels

    def forward(self, x: Tensor, routing_weights: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Compute what the layer does."""
        if output_size is not None:
            raise UsageError(
                f"`output_size` must not be given to a layer with {type(self.experts).__name__} that is exported, got "
                f"{shown(output_size)}: give the layer output_padding instead"
            )
        y: Tensor = self.experts(x, routing_weights, self.geometry, "auto")
        return y if self.folded_bias is None else y + along(self.folded_bias, y, self.dim)


class Esum(nn.Module):
    """One static layer per expert, and the weighted sum of their outputs; for every kind of layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        unbiased = copy.deepcopy(layer, {id(layer.routing_fn): layer.routing_fn})
        unbiased.folded_bias = None
        self.experts = nn.ModuleList(unbiased.to_static(one) for one in torch.eye(layer.num_experts))
        self.folded_bias = None if layer.folded_bias is None else nn.Parameter(layer.folded_bias.detach().clone())
        self.dim = -1 if isinstance(layer, CondLinear) else 1  # of the channels

    def forward(self, x: Tensor, routing_weights: Tensor, **options: Any) -> Tensor:
        """Apply every expert to x, with the options of the ordinary layer, and add up by `[B, E]`."""
        weights = routing_weights[(..., *(None,) * (x.dim() - 2))]
        total = add(expert(x, **options) * weights[:, e : e + 1] for e, expert in enumerate(self.experts))
        return total if self.folded_bias is None else total + along(self.folded_bias, total, self.dim)


class BmmLinear(nn.Module):
    """A conditional linear layer as a product of matrices, one per example."""

    def __init__(self, layer: CondLinear) -> None:
        super().__init__()
        self.sizes = layer.out_features, layer.in_features
        self.experts = Mixer(layer.experts.kernels(), layer.out_features)
        self.bias = MixedBias(layer)

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """Map x `[B, ..., C]` with the experts mixed by `[B, E]`."""
        kernels = self.experts(routing_weights).view(-1, *self.sizes)
        if x.dim() == 2:
            return self.bias(torch.bmm(kernels, x[..., None])[..., 0], routing_weights)
        y = self.bias(torch.bmm(kernels, x.flatten(1, -2).mT), routing_weights)  # [B, O, rows]
        return y.mT.unflatten(1, x.shape[1:-1])


class Centred(nn.Module):
    """A form of a layer with `DeltaExperts`: that of dense experts, weighted by a one and the centred weights.

    The layer, which is about to be replaced, is given the same kernels as dense experts.
    """

    centre: Tensor
    scale: Tensor | None

    def __init__(self, layer: Any, make: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.register_buffer("centre", layer.experts.centre)
        self.register_buffer("scale", layer.experts.scale)
        layer.experts = layer.experts.as_dense()
        self.form = make(layer)

    def forward(self, x: Tensor, routing_weights: Tensor, **options: Any) -> Tensor:
        """Compute what the layer does."""
        y: Tensor = self.form(x, one_and_centred(routing_weights, self.centre, self.scale), **options)
        return y
