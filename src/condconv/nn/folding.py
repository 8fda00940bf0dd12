"""Fold a batch norm into the experts before it."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condconv.errors import UsageError
from condconv.nn.block_routing import RoutingSlot
from condconv.nn.conditional import ConditionalLayer


def why_not_fold(layer: ConditionalLayer, norm: _BatchNorm) -> str | None:
    """Return why a batch norm cannot be folded into the layer before it, with the remedy, or `None`."""
    if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return "it has a forward of its own, which may do more than normalise; put a torch.nn.BatchNorm in its place"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics, and so depends on the batch; give it track_running_stats=True and train"
    outputs = layer.experts.spec.out_channels
    if norm.num_features != outputs:
        return f"it has {norm.num_features} channels, and the layer {outputs}; give the norm after the layer"
    return None


@torch.no_grad()
def fold_batch_norm(layer: ConditionalLayer, norm: nn.Module) -> ConditionalLayer:
    """Return a copy of a conditional layer that also applies the batch norm after it, in evaluation mode.

    Exact for every routing: with `s = gamma / sqrt(var + eps)`,
    `BN(conv(x, sum r W) + sum r b) = conv(x, sum r (s W)) + sum r (s b) + (beta - s mean)`.
    The last term does not depend on the routing weights and becomes the layer's `folded_bias`.

    Args:
        layer: A conditional convolution or linear layer; not changed.
        norm: The `torch.nn.BatchNorm*d` right after it, with running statistics; not changed.

    Returns:
        The layer, in evaluation mode. Scaled in fp64 and rounded once.

    Raises:
        UsageError: `layer` is not a conditional layer, or its experts are quantized; `norm` is not a batch norm and
            nothing more, has no running statistics, or another number of channels.
    """
    if not isinstance(layer, ConditionalLayer):
        raise UsageError(f"`layer` must be a conditional layer, got {type(layer).__name__}: convert it first")
    if layer.experts.quantized:
        raise UsageError(
            f"`layer` must have ordinary experts, got quantized ones ({layer.weight.dtype}): fold the batch norm "
            "first, then quantize"
        )
    if not isinstance(norm, _BatchNorm):
        raise UsageError(f"`norm` must be a torch.nn.BatchNorm, got {type(norm).__name__}: no other norm can be folded")
    if (reason := why_not_fold(layer, norm)) is not None:
        raise UsageError(f"`norm` must be a batch norm that can be folded, got {type(norm).__name__}: {reason}")
    # A slot is filled by the block that owns it: the copy must read the same one.
    shared = {id(layer.routing_fn): layer.routing_fn} if isinstance(layer.routing_fn, RoutingSlot) else {}
    folded = copy.deepcopy(layer, shared).eval()
    mean, variance = (cast(Tensor, each) for each in (norm.running_mean, norm.running_var))
    scale = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if layer.folded_bias is not None:
        shift = shift + layer.folded_bias.double() * scale
    folded.experts.scale_outputs_(scale)
    if norm.weight is not None and norm.weight.requires_grad:  # it is in the experts now
        folded.experts.requires_grad_(True)
    shift = shift.to(layer.experts.dtype)
    folded.folded_bias = layer.parameter_from(shift, layer.folded_bias, norm.weight, norm.bias)
    return folded
