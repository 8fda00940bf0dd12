"""Forward and backward of the implementations that apply mixed kernels, some examples at a time.

Backward mixes the kernels again: kept, they would be `B * P` numbers for a layer whose experts are `E * P`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condconv.ops.geometry import Geometry, laid_out_as
from condconv.ops.mixing import accumulation_dtype, mix_bias, mix_kernels, mix_kernels_backward

Apply = Callable[[Tensor, Tensor, Geometry], Tensor]
ApplyBackward = Callable[[Tensor, Tensor, Tensor, Geometry, tuple[bool, bool]], tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class MixedKernels:
    """A way to apply mixed kernels, one per example.

    Attributes:
        apply: From x `[B, C, *S]`, kernels `[B, O, C/G, *K]` and the geometry to `[B, O, *S']`, by torch functions that
            torch differentiates; B may be 0.
        apply_backward: From the gradient of the output, x, kernels, geometry and whether each of two gradients is
            needed, to those of x and of the kernels.
        chunk: How many examples it takes at a time; `None` for all.
    """

    apply: Apply
    apply_backward: ApplyBackward
    chunk: int | None = None

    def forward(
        self, x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        """Mix the kernels, convolve and add the mixed bias, by plain differentiable torch functions.

        Shapes as in `impl.reference.forward`. The output follows the layout of x.
        """
        if self.chunk is None:
            output = self.apply(x, mix_kernels(weight, routing_weights, x.dtype), geometry)
        else:
            outputs = []
            for part in _parts(x.shape[0], self.chunk):
                kernels = mix_kernels(weight, routing_weights[part], x.dtype)
                outputs.append(self.apply(x[part], kernels, geometry))
            output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if bias is not None:
            output = output + mix_bias(bias, routing_weights, x.dtype, len(geometry.stride))
        return laid_out_as(output, x)

    def backward(
        self,
        grad_output: Tensor,
        x: Tensor,
        weight: Tensor,
        routing_weights: Tensor,
        geometry: Geometry,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, weight and routing weights; the latter two go together.

        Those are added up over the chunks in fp32 (fp64 for fp64).
        """
        needs_x, needs_mixing = needs[0], needs[1] or needs[2]
        wide = accumulation_dtype(weight.dtype)
        grads_x: list[Tensor] = []
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_mixing else None
        grad_routing = routing_weights.new_zeros(routing_weights.shape, dtype=wide) if needs_mixing else None
        for part in _parts(x.shape[0], self.chunk or x.shape[0]):
            weights = routing_weights[part]
            kernels = mix_kernels(weight, weights, x.dtype)
            grad_x, grad_kernels = self.apply_backward(
                grad_output[part], x[part], kernels, geometry, (needs_x, needs_mixing)
            )
            if grad_x is not None:
                grads_x.append(grad_x)
            if grad_kernels is not None and grad_weight is not None and grad_routing is not None:
                grad_experts, grad_routing[part] = mix_kernels_backward(grad_kernels, weight, weights)
                grad_weight += grad_experts
        return torch.cat(grads_x) if needs_x else None, grad_weight, grad_routing


def _parts(batch: int, chunk: int) -> list[slice]:
    """Return the parts of a batch; one of no examples if there is none."""
    return [slice(start, start + chunk) for start in range(0, max(batch, 1), chunk)]
