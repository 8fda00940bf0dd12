"""Forward and backward of the implementations that mix kernels, `chunk` examples at a time.

Backward mixes the kernels again: kept, they would be `B * P` numbers for a layer whose experts are `E * P`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, laid_out_as, strided_as
from condconv.ops.impl import grouped, matmul, native, triton
from condconv.ops.mixing import accumulation_dtype, mix_bias, mix_kernels, mix_kernels_backward

# How each implementation applies mixed kernels, and how many examples it takes at a time (None: all).
# One example at a time keeps a single mixed kernel alive, in cache where it is small.
APPLY: dict[str, tuple[ModuleType, int | None]] = {
    "grouped": (grouped, None),
    "matmul": (matmul, None),
    "loop": (grouped, 1),
}
# These mix kernels themselves and are no chains of torch functions: forward and backward are their own.
FUSED: dict[str, ModuleType] = {"native": native, "triton": triton}


def forward(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry, impl: str
) -> Tensor:
    """Mix the kernels, convolve and add the mixed bias; those of `APPLY` by plain differentiable torch functions.

    Shapes as in `impl.reference.forward`. `impl` is a key of `APPLY` or `FUSED`. The output follows the layout
    of x.
    """
    if impl in FUSED:
        return _add_bias_(FUSED[impl].forward(x, weight, routing_weights, geometry), bias, routing_weights)
    if impl != "matmul" and x.shape[0] == 0:  # there is no example to call a convolution for
        impl = "matmul"
    module, chunk = APPLY[impl]
    if chunk is None:
        output = module.apply(x, mix_kernels(weight, routing_weights, x.dtype), geometry)
    else:
        outputs = []
        for part in _parts(x.shape[0], chunk):
            kernels = mix_kernels(weight, routing_weights[part], x.dtype)
            outputs.append(module.apply(x[part], kernels, geometry))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if bias is not None:
        output = output + mix_bias(bias, routing_weights, x.dtype, len(geometry.stride))
    return laid_out_as(output, x)


def run(
    x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry, impl: str
) -> Tensor:
    """The same without gradients, with the strides that the operator's fake promises."""
    return _no_view(strided_as(forward(x, weight, routing_weights, bias, geometry, impl), x))


def run_quantized(
    x: Tensor,
    weight: Tensor,
    routing_weights: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    geometry: Geometry,
    impl: str,
) -> Tensor:
    """The same for quantized experts, which only "native" reads as they are; there is no gradient."""
    output = native.forward(x, weight, routing_weights, geometry, weight_scale)
    return strided_as(_add_bias_(output, bias, routing_weights), x)


def _no_view(output: Tensor) -> Tensor:
    """Return the same numbers as a tensor of its own: autograd refuses to change a view from an operator in place."""
    if not output._is_view():
        return output
    return output.new_empty(0).set_(output.untyped_storage(), output.storage_offset(), output.size(), output.stride())


def _add_bias_(output: Tensor, bias: Tensor | None, routing_weights: Tensor) -> Tensor:
    return output if bias is None else output.add_(mix_bias(bias, routing_weights, output.dtype, output.dim() - 2))


def backward(
    grad_output: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    geometry: Geometry,
    impl: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of x, weight, routing weights and bias, an empty tensor where `needs` is false.

    The experts' gradients are added up over the chunks in fp32 (fp64 for fp64) and rounded once.
    """
    x, weight, routing_weights, bias = tensors
    needs_x, needs_weight, needs_routing, needs_bias = needs
    wide = accumulation_dtype(weight.dtype)
    if impl in FUSED:
        grad_x, grad_weight, grad_routing = FUSED[impl].backward(
            grad_output, x, weight, routing_weights, geometry, (needs_x, needs_weight, needs_routing)
        )
    else:
        grad_x, grad_weight, grad_routing = _backward_by_chunks(
            grad_output, (x, weight, routing_weights), geometry, impl, (needs_x, needs_weight or needs_routing)
        )
    grads = empty_grads(x)
    if grad_x is not None:
        grads[0] = strided_as(laid_out_as(grad_x, x), x)
    if needs_weight and grad_weight is not None:
        grads[1] = _in_form_of(weight, grad_weight)
    if bias is not None and (needs_bias or needs_routing):
        grad_shift = grad_output.flatten(2).sum(2, dtype=wide)
        if needs_bias:
            grads[3] = _in_form_of(bias, routing_weights.to(wide).T @ grad_shift)
        if grad_routing is not None:
            grad_routing = grad_routing + grad_shift @ bias.to(wide).T
    if needs_routing and grad_routing is not None:
        grads[2] = _in_form_of(routing_weights, grad_routing)
    return grads


def _in_form_of(tensor: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient in the dtype and, as the operator's fake promises, the layout of what it belongs to."""
    like = torch.empty_like(tensor, device="meta")
    if grad.stride() == like.stride():
        return grad.to(tensor.dtype)
    return torch.empty_like(tensor).copy_(grad)


def _backward_by_chunks(
    grad_output: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    geometry: Geometry,
    impl: str,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight and routing weights, a few examples at a time; the latter two go together."""
    x, weight, routing_weights = tensors
    needs_x, needs_mixing = needs
    module, chunk = APPLY[impl]
    wide = accumulation_dtype(weight.dtype)
    grads_x = []
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs_mixing else None
    grad_routing = routing_weights.new_zeros(routing_weights.shape, dtype=wide) if needs_mixing else None
    for part in _parts(x.shape[0], chunk or x.shape[0]):
        weights = routing_weights[part]
        kernels = mix_kernels(weight, weights, x.dtype)
        grad_x, grad_kernels = module.apply_backward(grad_output[part], x[part], kernels, geometry, needs)
        grads_x.append(grad_x)
        if grad_kernels is not None and grad_weight is not None and grad_routing is not None:
            grad_experts, grad_routing[part] = mix_kernels_backward(grad_kernels, weight, weights)
            grad_weight += grad_experts
    return torch.cat(grads_x) if needs_x else None, grad_weight, grad_routing


def empty_grads(x: Tensor) -> list[Tensor]:
    """Return four empty tensors: an operator returns a tensor also where no gradient is asked for."""
    return [x.new_empty(0) for _ in range(4)]


def _parts(batch: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, batch, chunk)]
