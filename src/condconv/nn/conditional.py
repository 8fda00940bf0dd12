"""What the conditional layers share.

They do not subclass their `torch.nn` twins: fusers, quantizers and counters find static convolutions by type, and
stacked experts would break each of them.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.experts import Experts, KernelSpec, is_expert_spread, make_experts
from condconv.nn.experts.build import ExpertsOption
from condconv.nn.factory import Routing, even_weights, make_routing, start_constant_
from condconv.nn.foreign import full_name
from condconv.nn.methods import Resolved, resolve_method
from condconv.nn.routing_function import RoutingFunction
from condconv.nn.static import carry_over_, why_not_static
from condconv.ops.implementations import check_impl
from condconv.ops.scalars import check_device, check_dtype

_Layer = TypeVar("_Layer", bound="ConditionalLayer")

PAPER = Resolved(8, "sigmoid", "dense")
"""What layers are made of by default: the paper's."""
LEARNING = Resolved(8, "sigmoid(standardize=True)", "deltas(scale=0.1)")
"""What a static layer becomes unless told otherwise: from a trained kernel the paper's own hardly learn to differ."""


class ConditionalLayer(nn.Module):
    """What conditional layers share: a geometry, which subclasses have, experts, and a routing function.

    Attributes:
        experts: What the kernels are made of, `condconv.nn.Experts`.
        folded_bias: `[O]`, added as it is, or `None`; made by folding a batch norm.
        routing_fn: From the layer's input to `[B, E]`.
    """

    static_type: ClassVar[type[nn.Module]]
    transposed: ClassVar[bool] = False
    groups: int = 1
    impl: str
    experts: Experts
    folded_bias: nn.Parameter | None
    routing_fn: nn.Module

    def __init__(
        self,
        spec: KernelSpec,
        routed_channels: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        num_experts: int | None,
        routing: Routing | None,
        experts: ExpertsOption | None,
        method: str | None,
        impl: str,
    ) -> None:
        super().__init__()
        num_experts, routing, experts = resolve_method(method, num_experts, routing, experts, PAPER)
        self.impl = check_impl(impl)
        device, dtype = check_device(device), check_dtype(dtype)
        self.experts = make_experts(experts, spec, num_experts, device=device, dtype=dtype)
        self.register_parameter("folded_bias", None)
        parts = self.experts.parts
        self.routing_fn = make_routing(routing, routed_channels, num_experts, parts=parts, device=device, dtype=dtype)
        if self.experts.centred and (even := even_weights(self.routing_fn)) is not None:
            self.experts.centre_on_(even)
        self.reset_parameters()

    @property
    def num_experts(self) -> int:
        """E, the length of the routing weights, unless the experts want other parts too."""
        return self.experts.num_experts

    # A program that was written for the static layer may read the device, the dtype or the gradient of these.
    @property
    def weight(self) -> nn.Parameter:
        """The experts' first parameter: all kernels `[E, ...]` of dense experts."""
        return self.experts.kernel_parameters()[0]

    @property
    def bias(self) -> nn.Parameter | None:
        """The experts' biases `[E, O]`, or `None`."""
        return self.experts.bias

    def reset_parameters(self) -> None:
        """Draw the experts at random, each as torch draws a static layer's kernel."""
        self.experts.reset_parameters()

    def route(self, x: Tensor) -> Tensor:
        """Return the routing weights `[B, N]` of an input `[B, C, *S]`; zeros, not computed, if no expert is active."""
        if self.experts.active == 0:
            return x.new_zeros(x.shape[0], self.experts.num_weights)
        weights: Tensor = self.routing_fn(x)
        return weights

    def fold(self, routing_weights: Tensor) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return the kernel and the bias that constant routing weights `[E]` amount to; fp32 for quantized experts.

        Each is trainable if anything that it is made of is, or if the experts are quantized.

        Raises:
            UsageError: The weights do not have shape `[E]`.
        """
        experts, added = self.experts, self.folded_bias
        kernel, bias = experts.fold(routing_weights)
        if added is not None:
            bias = added.detach().double() + (0 if bias is None else bias)
        return (
            self.parameter_from(kernel.to(experts.dtype), *experts.kernel_parameters()),
            None if bias is None else self.parameter_from(bias.to(experts.dtype), experts.bias, added),
        )

    def parameter_from(self, value: Tensor, *sources: Tensor | None) -> nn.Parameter:
        """Return a new parameter, trainable if any of its sources is, or if the experts are quantized."""
        learns = any(each.requires_grad for each in sources if each is not None)
        return nn.Parameter(value, self.experts.quantized or learns)

    @staticmethod
    def arguments_of(static: Any) -> dict[str, Any]:
        """Return the arguments, of those a static layer and its conditional twin share, that make the latter."""
        raise NotImplementedError

    @classmethod
    def from_static(
        cls: type[_Layer],
        static: nn.Module,
        num_experts: int | None = None,
        *,
        routing: Routing | None = None,
        init: str = "same_output",
        expert_spread: float = 0.5,
        experts: ExpertsOption | None = None,
        method: str | None = None,
        impl: str = "auto",
    ) -> _Layer:
        """Return a conditional layer that computes what a static one does, until it is trained further.

        The routing function starts with equal weights for all inputs, under which the experts mix to the kernel.
        Device, dtype, layout, training mode, `requires_grad` and plain attributes are those of the static layer; its
        forward hooks stay with it. The routing function of a frozen layer is frozen too. On the meta device the layer
        has no values either, until a state dict is loaded.

        Args:
            static: The twin: a `torch.nn.Conv2d` for `CondConv2d`, and so on. Not changed.
            num_experts: E; `None` for 8, or for what the method has.
            routing: As in the layer; by default a sigmoid of standardised features.
            init: `"same_output"`, or `"random"` to train from scratch as the paper does: each expert is drawn on
                its own, normal with the spread of the kernel (`CondLinear`: or less), and the routing function starts
                at random; the output is then not that of the static layer.
            expert_spread: Difference between the experts, relative to the standard deviation of the kernel; 0 for exact
                copies. Whatever its size it cancels at the start; at a tenth of the default, dense experts were seen to
                be weighted alike, all rising and falling together, after training.
            experts: As in the layer; by default `"deltas(scale=0.1)"`, differences from the kernel whose scale suits
                fine-tuning. Take `"deltas"` to train from scratch with SGD; see `condconv.nn.DeltaExperts`.
            method: As in the layer.
            impl: As in `condconv.ops.cond_conv2d`.

        Returns:
            The layer. Its output equals that of the static layer to rounding.

        Raises:
            UsageError: `static` is not the twin, or has what the new layer would not have: a computed weight or bias, a
                forward, methods, tensors or hooks of its own. Or the routing cannot start constant, `expert_spread` is
                negative, or `init` unknown.

        Example:
            >>> static = torch.nn.Conv2d(4, 6, 3)
            >>> x = torch.randn(2, 4, 8, 8)
            >>> torch.allclose(static(x), condconv.CondConv2d.from_conv(static, num_experts=4)(x), atol=1e-5)
            True
        """
        if not isinstance(static, cls.static_type):
            raise UsageError(
                f"`static` must be a {cls.static_type.__name__}, got a {full_name(type(static))}: a Conv2d becomes a "
                "CondConv2d, a Linear a CondLinear, and so on"
            )
        if (reason := why_not_static(static, cls)) is not None:
            raise UsageError(
                f"`static` must be a layer that experts can be made of, got a {full_name(type(static))}: {reason}"
            )
        if not is_expert_spread(expert_spread):
            raise UsageError(
                f"`expert_spread` must be a finite number of at least 0, got {shown(expert_spread)}: 0.5 is the default"
            )
        if init not in ("same_output", "random"):
            raise UsageError(
                f"`init` must be 'same_output' or 'random', got {shown(init)}: 'same_output' keeps the output as it is"
            )
        weight: Tensor = static.weight  # type: ignore[assignment]
        bias: Tensor | None = static.bias  # type: ignore[assignment]
        resolved = resolve_method(method, num_experts, routing, experts, LEARNING)
        options = {"device": weight.device, "dtype": weight.dtype, "impl": impl, **resolved._asdict()}
        make: Any = cls
        layer: _Layer = make(**cls.arguments_of(static), bias=bias is not None, **options)
        if init == "same_output":
            layer.experts.start_from_(weight, bias, start_constant_(layer.routing_fn), expert_spread)
        else:
            layer.experts.draw_(weight, bias, layer.spread_for(weight))
        carry_over_(layer, static, cls.static_type)
        if not weight.requires_grad:  # else a kernel that is not to move would, mixed by weights that learn
            layer.routing_fn.requires_grad_(False)
        return layer.train(static.training)

    def spread_for(self, kernel: Tensor) -> Tensor:
        """Return the standard deviation, a scalar, of experts that are drawn in place of a static kernel: its own."""
        return kernel.std(correction=0)


def own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of one layer, with those of its experts and without those of its routing."""
    experts = layer.experts.parameters() if isinstance(layer, ConditionalLayer) else ()
    return [*layer.parameters(recurse=False), *experts]


def conditional_layers(model: nn.Module) -> dict[str, ConditionalLayer]:
    """Return the layers of a model, itself included, that have experts, by their names in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}


def routed_buffers(model: nn.Module, *, remove_duplicate: bool = True) -> dict[str, Tensor]:
    """Return the buffers of experts and routing functions by their names in a model, such as scales and temperatures.

    None of them has a reason to be infinite, as buffers of other modules may have.

    Args:
        model: Any.
        remove_duplicate: Whether those of a module that stands in several places have one name only, as in torch.
    """
    return {
        f"{name}.{own}".removeprefix("."): buffer
        for name, module in model.named_modules(remove_duplicate=remove_duplicate)
        if isinstance(module, (Experts, RoutingFunction))
        for own, buffer in module.named_buffers()
    }
