"""What every store of experts is: it owns the tensors that a layer's kernels are made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.nn.heads import OF_EXPERTS, Part, at_start
from condconv.ops.validation import check_tensor

_Experts = TypeVar("_Experts", bound="Experts")


class KernelSpec(NamedTuple):
    """One example's kernel: its shape, and what the dimensions mean.

    Attributes:
        shape: `[O, C/G, *K]`, of a transposed convolution `[C, O/G, *K]`, of a linear layer `[O, C]`.
        out_channels: O.
        groups: G.
        transposed: Whether the convolution is transposed.
        bias: Whether there is a bias `[O]` per expert.
    """

    shape: tuple[int, ...]
    out_channels: int
    groups: int = 1
    transposed: bool = False
    bias: bool = True

    @classmethod
    def of(cls, static: Any) -> KernelSpec:
        """Return that of a static layer of torch."""
        shape, has_bias = tuple(static.weight.shape), static.bias is not None
        if isinstance(static, nn.Linear):
            return cls(shape, static.out_features, bias=has_bias)
        return cls(shape, static.out_channels, static.groups, static.transposed, has_bias)


class MixCost(NamedTuple):
    """What experts cost for one example of a model's input.

    Attributes:
        madds: Multiply-adds of the convolution, and of mixing.
        expert_bytes: Bytes of all that the kernels are made of, biases and scales too.
        kernel_bytes: Bytes of one example's mixed kernel and bias; 0 if no kernel is ever mixed.
    """

    madds: int
    expert_bytes: int
    kernel_bytes: int


def along_inputs(factor: Tensor, kernels: Tensor, spec: KernelSpec) -> Tensor:
    """Return numbers of input channels `[B, C]` in a shape that kernels `[B, *shape]` can be multiplied by."""
    if spec.transposed:
        return factor[(..., *(None,) * (kernels.dim() - 2))]
    per_group = factor.unflatten(1, (spec.groups, -1)).repeat_interleave(spec.out_channels // spec.groups, dim=1)
    return per_group[(..., *(None,) * (kernels.dim() - 3))]


class Geometry(Protocol):
    """How a layer applies kernels: stride, padding and so on, of a convolution or a linear map."""

    def per_example(
        self,
        x: Tensor,
        weight: Tensor,
        routing_weights: Tensor,
        bias: Tensor | None,
        *,
        impl: str,
        weight_scale: Tensor | None = None,
    ) -> Tensor:
        """Apply to each example its own mixture of `weight` `[E, *shape]`; see `condconv.ops`."""

    def shared(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Apply one kernel `[*shape]` and bias `[O]` to all examples, as the static layer does."""

    def each(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Apply to each example its own kernel, of `[B, *shape]`."""

    def under_centre(self, x: Tensor, kernel_size: Sequence[int]) -> Tensor:
        """Return what the centre of a kernel lies on, one place of x for each of the output."""


class Experts(nn.Module):
    """The experts of one layer: a subclass per way to store them.

    A layer is a geometry, experts, and a routing function. Nothing outside this package knows how a store keeps its
    kernels; `mix` is the specification, and all else must agree with it.

    Attributes:
        spec: The kernel of one example.
        num_experts: E, the number of experts.
        parts: The parts of the routing vector that the store wants; `None` for one weight per expert and nothing else.
        bias: `[E, O]`, mixed by the routing weights, or `[O]`, the same for all examples, or `None`.
        quantized: Whether the kernels are stored in fewer bits than they are computed in; for inference only.
        centred: Whether the store has a centre, the routing weights that inputs have at the start; see `centre_on_`.
        for_some_layers: Whether the layers that cannot have them stay static in networks by name too.
        linear: Whether the kernel is the sum of the kernels of the single experts, weighted by the routing weights.
        unit: What smaller members of an elastic network have fewer of: `"experts"`, each with a routing weight; or
            `"ranks"`, which all experts share, so that the routing stays as it is.
        why_not_fewer: Why the first units are not a layer by themselves, or `None`; see `keep_`.
        active: How many of the first units are computed with, while a smaller member of an elastic network runs;
            `None` for all. With 0 the layer is static: it computes what it does at the centre. See `activate_`.
    """

    linear: ClassVar[bool]
    centred: ClassVar[bool] = False
    for_some_layers: ClassVar[bool] = False
    unit: ClassVar[str] = "experts"
    why_not_fewer: ClassVar[str | None] = "they do not say how to compute with the first of their parts only"
    active: int | None = None
    parts: tuple[Part, ...] | None = None
    bias: nn.Parameter | None

    def __init__(self, spec: KernelSpec, num_experts: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_experts = num_experts
        self.quantized = False

    @property
    def num_weights(self) -> int:
        """N, the length of the routing vector: E, unless there are other parts."""
        return self.num_experts if self.parts is None else sum(part.size for part in self.parts)

    @property
    def units(self) -> int:
        """The number of units, of which `active` counts the first: experts or ranks, as `unit` says."""
        return self.num_experts

    def split(self, routing_weights: Tensor) -> dict[str, Tensor]:
        """Return the parts of routing weights `[B, N]` by their names, `[B, size]` each."""
        given, start = {}, 0
        for part in self.parts or (Part(OF_EXPERTS, self.num_experts),):
            given[part.name] = routing_weights[:, start : start + part.size]
            start += part.size
        return given

    def weights_of_experts(self, routing_weights: Tensor) -> Tensor:
        """Return the weights of the experts `[B, E]` of `[B, N]`; ones if a single expert is not weighed."""
        weights = self.split(routing_weights).get(OF_EXPERTS)
        return routing_weights.new_ones(routing_weights.shape[0], self.num_experts) if weights is None else weights

    def even_weights(self) -> Tensor:
        """Return equal weights of the experts, and the other parts as they are at the start; `[N]`, fp64."""
        return at_start(self.parts or (Part(OF_EXPERTS, self.num_experts),))

    def reset_parameters(self) -> None:
        """Draw the experts at random, as torch draws the kernel of one static layer, in place."""
        raise NotImplementedError

    def centre_on_(self, routing_weights: Tensor) -> None:
        """Take routing weights `[E]` for the centre of a store that has one, in place."""

    def start_from_(
        self, kernel: Tensor, bias: Tensor | None, routing_weights: Tensor, expert_spread: float = 0.5
    ) -> None:
        """Make experts of a static layer's kernel, in place: they mix to it under some routing weights.

        Args:
            kernel: `[*shape]`. Its device, dtype, layout and `requires_grad` become those of the experts.
            bias: `[O]`, or `None`.
            routing_weights: `[E]`, those that every input has at the start.
            expert_spread: Difference between the experts, relative to the kernel's standard deviation.
        """
        raise NotImplementedError

    def draw_(self, kernel: Tensor, bias: Tensor | None, deviation: Tensor) -> None:
        """Draw each expert for itself, in place: normal with a given standard deviation; biases are copied.

        Args:
            kernel: `[*shape]`, of the static layer that is replaced; only its layout and `requires_grad` matter.
            bias: `[O]`, or `None`.
            deviation: A scalar tensor.
        """
        raise NotImplementedError

    def mix(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the kernel and the bias of each example, `[B, *shape]` and `[B, O]` or `None`.

        Args:
            routing_weights: `[B, E]`; the result has their dtype.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, routing_weights: Tensor, geometry: Geometry, impl: str) -> Tensor:
        """Return what each example's kernel makes of it, biases included.

        It is the module's call, so that hooks on the experts run, such as those which gather sharded parameters.

        Args:
            x: The layer's input, `[B, ...]`.
            routing_weights: `[B, E]`.
            geometry: How the layer applies a kernel.
            impl: As in `condconv.ops.cond_conv2d`.
        """
        raise NotImplementedError

    @torch.no_grad()
    def fold(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the kernel `[*shape]` and the bias `[O]` that constant routing weights amount to, in fp64.

        Raises:
            UsageError: The weights do not have shape `[E]`.
        """
        check_tensor("routing_weights", routing_weights)
        if tuple(routing_weights.shape) != (self.num_weights,):
            raise UsageError(
                f"`routing_weights` must have shape [E] = {(self.num_weights,)}, got {tuple(routing_weights.shape)}: "
                "for weights of several examples, give their mean over the batch"
            )
        device = next(self.parameters()).device
        kernels, biases = self.mix(routing_weights.detach().to(device, torch.float64)[None])
        return kernels[0], None if biases is None else biases[0]

    def kernels(self) -> Tensor:
        """Return what each expert adds to the kernel with weight 1, `[E, *shape]`."""
        raise NotImplementedError

    def scale_outputs_(self, scale: Tensor) -> None:
        """Multiply kernels and biases along their output channels, in place; computed in fp64, rounded once.

        Args:
            scale: `[O]`.
        """
        raise NotImplementedError

    def activate_(self, number: int | None) -> None:
        """Compute with the first units only, in place; with all if it is `None` or as many as there are."""
        self.active = None if number is None or number >= self.units else number

    def keep_(self, number: int) -> None:
        """Remove all but the first units, at least one, in place; only where `why_not_fewer` is `None`."""
        raise NotImplementedError

    def cost(self, inputs: int, outputs: int, mixtures: int) -> MixCost:
        """Return what the experts cost for one example of a model's input.

        Args:
            inputs: Number of places of the layer's input, pixels or rows.
            outputs: Of its output.
            mixtures: How many kernels are mixed: more than one where the model folds windows into the batch.
        """
        raise NotImplementedError

    def with_own_parameters(self: _Experts) -> _Experts:
        """Return a copy that shares these parameters, and in which others can be set."""
        copied = copy.copy(self)
        copied._parameters, copied._buffers = dict(self._parameters), dict(self._buffers)
        return copied

    @classmethod
    def why_not(cls, spec: KernelSpec, **options: Any) -> str | None:
        """Return why a layer cannot have these experts with some options, or `None`."""
        return None

    def kernel_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that take the place of a static layer's weight, in a fixed order."""
        return [each for name, each in self.named_parameters() if name != "bias"]

    def why_not_fit(self) -> str | None:
        """Return why these experts cannot be fitted to others, with the remedy, or `None`."""
        return f"{type(self).__name__} cannot be fitted to other experts: take 'shared(outputs=16)'"

    def fit_(self, experts: Experts, mean: Tensor, covariance: Tensor) -> None:
        """Become the nearest experts of this kind to linear ones, in place, weighted by what the routing does.

        Args:
            experts: The linear ones, of the same kernel and number.
            mean: Of the routing weights, `[E]`, fp64.
            covariance: Of the routing weights, `[E, E]`, fp64.
        """
        raise NotImplementedError

    def why_not_quantize(self) -> str | None:
        """Return why the kernels cannot be stored in fewer bits, with the remedy, or `None`."""
        raise NotImplementedError

    def quantize(self, dtype: torch.dtype) -> Experts:
        """Return these experts with their kernels stored in bfloat16 or int8, for inference; biases are shared."""
        raise NotImplementedError

    def options(self) -> str:
        """Return the options, as a user writes them between the parentheses of `"shared(...)"`; empty if none."""
        return ""

    def extra_repr(self) -> str:
        """Describe the sizes and the options in `repr`."""
        sizes = f"num_experts={self.num_experts}, kernel={tuple(self.spec.shape)}"
        return ", ".join(filter(None, (sizes, self.options())))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which kernels are computed."""
        return torch.float32 if self.quantized else next(self.parameters()).dtype
