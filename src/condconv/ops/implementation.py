"""The record of an implementation: all that the rest of the package knows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from condconv.ops.geometry import Geometry, laid_out_as, owned, strided_as
from condconv.ops.problem import Problem

Forward = Callable[..., Tensor]
Backward = Callable[
    [Tensor, Tensor, Tensor, Tensor, Geometry, Sequence[bool]], tuple[Tensor | None, Tensor | None, Tensor | None]
]
Runner = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""From x, weight, routing weights, bias and weight scale to the output: a forward pass without gradients."""
Prepare = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Geometry], Runner | None]


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operation.

    Attributes:
        name: What `impl` calls it.
        why_not: Returns the reason why it cannot run a call, or `None`.
        forward: From x, weight, routing weights, bias and geometry to the output; shapes as in `impl.reference`. With
            `reads_quantized` the weight scale follows.
        backward: From the gradient of the output, x, weight, routing weights, geometry and whether each of the three
            gradients is needed, to those of x, weight and routing weights, `None` where not needed. The bias is not
            its task. `None`: torch differentiates `forward`, outside of the registered operator.
        prepare: From the arguments of a call to what computes calls of the same shapes, strides, dtypes and device
            without gradients. It may return `None`, and be `None`: then `forward` does.
        reads_memory: Whether it reads tensors from memory itself, so that PyTorch must resolve views whose negation is
            pending before.
        reads_quantized: Whether it reads quantized experts as they are; for others they are widened first.
        fusible: Whether a compiler should see its torch functions rather than the operator, if no gradient is needed.
    """

    name: str
    why_not: Callable[[Problem], str | None]
    forward: Forward
    backward: Backward | None = None
    prepare: Prepare | None = None
    reads_memory: bool = False
    reads_quantized: bool = False
    fusible: bool = False

    def must_be_plain(self, problem: Problem) -> bool:
        """Return whether it runs as plain torch functions instead of inside the registered operator.

        An exported graph must not need this package to load; a compiler fuses what it sees; and a registered
        operator's backward does not compose with `torch.func` transforms, where kernels are kept for backward.
        """
        if problem.compiling and not problem.exporting:
            return self.fusible and not problem.needs_grad
        return problem.exporting or problem.transforming

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        routing_weights: Tensor,
        bias: Tensor | None,
        weight_scale: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        """Compute once, without gradients: a tensor of its own, with the strides that the operator's fake promises."""
        scale = () if weight_scale is None else (weight_scale,)
        output = self.forward(x, weight, routing_weights, bias, geometry, *scale)
        if self.backward is None:
            return laid_out_as(output, x)
        return owned(strided_as(output, x))

    def bind(
        self,
        x: Tensor,
        weight: Tensor,
        routing_weights: Tensor,
        bias: Tensor | None,
        weight_scale: Tensor | None,
        geometry: Geometry,
    ) -> Runner:
        """Return what computes as `run` does for calls whose tensors look like these; it keeps none of them."""
        if self.prepare is not None:
            runner = self.prepare(x, weight, routing_weights, bias, weight_scale, geometry)
            if runner is not None:
                return runner

        def run(
            x: Tensor, weight: Tensor, routing_weights: Tensor, bias: Tensor | None, weight_scale: Tensor | None
        ) -> Tensor:
            return self.run(x, weight, routing_weights, bias, weight_scale, geometry)

        return run
