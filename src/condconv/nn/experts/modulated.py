"""Kernels that routing multiplies along their dimensions: squeeze-and-excitation, ODConv and WeightNet."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError, shown
from condconv.nn.experts.base import Geometry, KernelSpec, MixCost, along_inputs
from condconv.nn.experts.mixed import MixedExperts
from condconv.nn.experts.parts import along
from condconv.nn.experts.which_parts import channels_of
from condconv.nn.heads import OF_EXPERTS, Part
from condconv.ops.mixing import mix_kernels
from condconv.ops.quantized import along_outputs
from condconv.ops.validation import check_routing_weights, check_tensors


class ModulatedExperts(MixedExperts):
    """E kernels, their weighted sum, and gains along its dimensions: `W(x) = A(x) (sum_e r_e W_e . T(x)) B(x)`.

    Gains are parts of the routing vector of their own, between 0 and 2, and 1 at the start. Those of channels multiply
    the maps. With gains of taps, a kernel is computed for each example. One kernel (E = 1) is not weighed.

    Args:
        spec: The kernel.
        num_experts: E.
        device: Of the parameters.
        dtype: Of the parameters.
        inputs: Whether each input channel has a gain, B.
        outputs: Whether each output channel has a gain, A. A depthwise layer with gains of inputs has these only, since
            both are the same.
        taps: Whether each place of the kernel has a gain, T, which all channels share; kernels of one tap have none.
        input_blocks: With gains of outputs, in how many blocks of input channels an output channel has a gain of its
            own. Layers whose channels cannot be divided so, and those with groups, have one.

    Raises:
        UsageError: An option is of a wrong type, or nothing would be routed.

    Source:
        Squeeze-and-excitation (arXiv:1709.01507), ODConv (arXiv:2209.07947), WeightNet (arXiv:2007.11823). In these
        gains are sigmoids; twice a sigmoid keeps the output of a trained kernel at the start.
    """

    linear = False
    why_not_fewer = "without their gains and kernels nothing is left, since no kernel has a constant weight"

    def __init__(
        self,
        spec: KernelSpec,
        num_experts: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inputs: bool = False,
        outputs: bool = True,
        taps: bool = False,
        input_blocks: int = 1,
    ) -> None:
        super().__init__(spec, num_experts, num_experts, device, dtype)
        gains = _gains(spec, inputs, outputs, taps, input_blocks)
        self.parts = (*((Part(OF_EXPERTS, num_experts),) if num_experts > 1 else ()), *gains)
        if not self.parts:
            raise UsageError(
                f"`taps` must come with gains of channels for one kernel of one tap, got inputs={inputs} and "
                f"outputs={outputs}: nothing would be routed"
            )
        self._blocks = next((part.size // spec.out_channels for part in gains if part.name == "outputs"), 1)
        self._dim = -1 if len(spec.shape) == 2 else 1

    def coefficients(self, routing_weights: Tensor) -> Tensor:
        """Return the weights of the experts, `[B, E]`; ones if there is one."""
        return self.weights_of_experts(routing_weights)

    def mix(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        kernels, bias = super().mix(routing_weights)
        parts, spec = self.split(routing_weights), self.spec
        if "taps" in parts:
            kernels = kernels * _along_taps(parts["taps"], kernels)
        if "inputs" in parts:
            kernels = kernels * along_inputs(parts["inputs"], kernels, spec)
        if "outputs" in parts and self._blocks == 1:
            kernels = kernels * along_outputs(parts["outputs"], kernels, spec.groups, spec.transposed)
        elif "outputs" in parts:
            gains = parts["outputs"].unflatten(1, (self._blocks, -1))  # [B, blocks, O]
            gains = gains.repeat_interleave(channels_of(spec)[0] // self._blocks, dim=1)  # [B, C, O]
            gains = gains if spec.transposed else gains.mT
            kernels = kernels * gains[(..., *(None,) * (kernels.dim() - 3))]
        return kernels, bias

    def forward(self, x: Tensor, routing_weights: Tensor, geometry: Geometry, impl: str) -> Tensor:
        """See the base; `impl` says how kernels are mixed, where E > 1 and taps have no gains."""
        check_tensors(x, self.weight, routing_weights, self.bias)
        check_routing_weights(routing_weights, x, self.num_weights)
        parts, coefficients = self.split(routing_weights), self.coefficients(routing_weights)
        if "inputs" in parts:
            x = x * along(parts["inputs"], x, self._dim)

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            if "taps" in parts:
                kernels = mix_kernels(weight, coefficients, x.dtype) if len(weight) > 1 else weight
                return geometry.each(x, kernels * _along_taps(parts["taps"].to(x.dtype), kernels))
            if len(weight) > 1:
                return geometry.per_example(x, weight, coefficients, None, impl=impl)
            return geometry.shared(x, weight[0], None)

        if self._blocks == 1:
            y = convolve(x, self.weight)
            y = y * along(parts["outputs"], y, self._dim) if "outputs" in parts else y
        else:
            axis, terms = 1 if self.spec.transposed else 2, []  # of the input channels in the stacked kernels
            size, outs = channels_of(self.spec)[0] // self._blocks, self.spec.out_channels
            for block in range(self._blocks):  # slices: exporters fold those of a constant, and no splits
                piece = x.narrow(self._dim, block * size, size)
                term = convolve(piece, self.weight.narrow(axis, block * size, size))
                gains = parts["outputs"][:, block * outs : (block + 1) * outs]
                terms.append(term * along(gains, term, self._dim))
            y = sum(terms[1:], terms[0])
        if self.bias is None:
            return y
        bias = self.bias[0] if len(self.bias) == 1 else coefficients @ self.bias.to(coefficients.dtype)
        return y + along(bias, y, self._dim)

    def cost(self, inputs: int, outputs: int, mixtures: int) -> MixCost:
        """See the base; the multiply-adds of mixing are for several kernels only, and gains are not counted."""
        madds, held, mixed = super().cost(inputs, outputs, mixtures)
        kernel = self.weight[0].numel()
        own = kernel + (0 if self.bias is None else self.spec.out_channels)
        if self.num_experts == 1:
            madds -= own * mixtures
            mixed = kernel * self.dtype.itemsize if "taps" in {part.name for part in self.parts or ()} else 0
        return MixCost(madds, held, mixed)

    def why_not_quantize(self) -> str | None:
        """See the base."""
        return "routing multiplies them along their channels or taps, for which there are no kernels of few bits"

    @classmethod
    def why_not(cls, spec: KernelSpec, **options: Any) -> str | None:
        """See the base."""
        try:
            _gains(spec, **{"inputs": False, "outputs": True, "taps": False, "input_blocks": 1, **options})
        except UsageError as error:
            return str(error)
        return None

    def options(self) -> str:
        """See the base; gains that the layer has not got are False."""
        parts = [part.name for part in self.parts or ()]
        gains = ", ".join(f"{name}={name in parts}" for name in ("inputs", "outputs", "taps"))
        return f"{gains}, input_blocks={self._blocks}"


def _along_taps(gains: Tensor, kernels: Tensor) -> Tensor:
    """Return gains of taps `[B, T]` in a shape that kernels `[B, *shape]` can be multiplied by."""
    return gains.view(-1, 1, 1, *kernels.shape[3:])


def _gains(spec: KernelSpec, inputs: Any, outputs: Any, taps: Any, input_blocks: Any) -> list[Part]:
    """Return the parts of the routing vector other than the weights of experts.

    Raises:
        UsageError: An option is of a wrong type, or out of range.
    """
    for name, value in (("inputs", inputs), ("outputs", outputs), ("taps", taps)):
        if not isinstance(value, bool):
            raise UsageError(f"`{name}` must be True or False, got {shown(value)}: leave it out for the default")
    if type(input_blocks) is not int or input_blocks < 1:
        raise UsageError(f"`input_blocks` must be a whole number of at least 1, got {shown(input_blocks)}: 1 is usual")
    channels, places = channels_of(spec)[0], prod(spec.shape[2:])
    found = [Part("inputs", channels, "gain")] if inputs else []
    if outputs and not (inputs and spec.groups == channels == spec.out_channels > 1):
        blocks = input_blocks if spec.groups == 1 and channels % input_blocks == 0 else 1
        found.append(Part("outputs", blocks * spec.out_channels, "gain"))
    return found + ([Part("taps", places, "gain")] if taps and places > 1 else [])
