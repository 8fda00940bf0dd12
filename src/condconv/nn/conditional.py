"""What the conditional layers share.

They do not subclass their `torch.nn` twins: fusers, quantizers and counters find static convolutions by type, and
stacked experts would break each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.experts import in_layout_of, init_experts_, is_expert_spread, spread_experts
from condconv.nn.factory import Routing, make_routing, start_constant_
from condconv.nn.foreign import full_name
from condconv.nn.static import carry_over_, why_not_static
from condconv.ops.implementations import check_impl
from condconv.ops.quantized import quantize, widen
from condconv.ops.scalars import check_device, check_dtype, flag, positive
from condconv.ops.validation import check_tensor

_Layer = TypeVar("_Layer", bound="ConditionalLayer")


class ConditionalLayer(nn.Module):
    """What conditional layers share: E experts, per-expert biases, a routing function.

    Attributes:
        weight: Experts, `[E, ...]`; each expert as the twin's weight.
        bias: `[E, O]`, mixed with the same weights as the experts, or `None`.
        folded_bias: `[O]`, added as it is, or `None`; made by folding a batch norm.
        routing_fn: From the layer's input to `[B, E]`.
        quantized: Whether the experts are bfloat16 or int8 and activations fp32; see `condconv.quantize_experts_`.
        weight_scale: `[E, O]`, fp32, what int8 experts are multiplied with; `None` for all others.
    """

    static_type: ClassVar[type[nn.Module]]
    transposed: ClassVar[bool] = False
    groups: int = 1
    num_experts: int
    num_outputs: int
    impl: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    folded_bias: nn.Parameter | None
    routing_fn: nn.Module
    quantized: bool
    weight_scale: Tensor | None

    def __init__(
        self,
        weight_shape: Sequence[int],
        out_features: int,
        routed_channels: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        num_experts: int,
        routing: Routing,
        impl: str,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts = positive("num_experts", num_experts)
        self.num_outputs = out_features
        self.impl = check_impl(impl)
        bias, device, dtype = flag("bias", bias), check_device(device), check_dtype(dtype)
        self.weight = nn.Parameter(torch.empty(num_experts, *weight_shape, device=device, dtype=dtype))
        biases = nn.Parameter(torch.empty(num_experts, out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", biases)
        self.register_parameter("folded_bias", None)
        self.quantized = False
        self.register_buffer("weight_scale", None)
        self.routing_fn = make_routing(routing, routed_channels, num_experts, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each expert on its own; see `condconv.nn.experts.init_experts_`."""
        init_experts_(self.weight, self.bias)

    def mix(self, routing_weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the kernel and the bias that constant routing weights `[E]` amount to; fp32 for quantized experts.

        Raises:
            UsageError: The weights do not have shape `[E]`.
        """
        check_tensor("routing_weights", routing_weights)
        if tuple(routing_weights.shape) != (self.num_experts,):
            raise UsageError(
                f"`routing_weights` must have shape [E] = {(self.num_experts,)}, got {tuple(routing_weights.shape)}: "
                "for weights of several examples, give their mean over the batch"
            )
        weights = routing_weights.detach().to(self.weight.device, torch.float64)
        dtype = torch.float32 if self.quantized else self.weight.dtype
        kernel = torch.tensordot(weights, self.experts_fp64(), dims=1).to(dtype)
        bias = None if self.bias is None else torch.tensordot(weights, self.bias.detach().double(), dims=1)
        if self.folded_bias is not None:
            bias = self.folded_bias.detach().double() + (0 if bias is None else bias)
        return kernel, None if bias is None else bias.to(dtype)

    def parameter_from(self, value: Tensor, *sources: Tensor | None) -> nn.Parameter:
        """Return a new parameter, trainable if any of its sources is, or if the experts are quantized."""
        return nn.Parameter(value, self.quantized or any(each.requires_grad for each in sources if each is not None))

    def experts_fp64(self) -> Tensor:
        """Return the experts in fp64, quantized ones widened; exact."""
        return widen(self.weight.detach(), self.weight_scale, self.groups, self.transposed, torch.float64)

    @torch.no_grad()
    def quantize_(self, dtype: torch.dtype) -> None:
        """Store the experts in bfloat16 or int8, in place; from then on the layer is for inference.

        Args:
            dtype: `torch.bfloat16` or `torch.int8`. The experts must be fp32, and finite.
        """
        experts = self.weight.detach()
        if dtype == torch.int8:
            experts, self.weight_scale = quantize(experts, self.groups, self.transposed)
        self.weight = nn.Parameter(experts.to(dtype), requires_grad=False)
        self.quantized = True

    def _apply(self: _Layer, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Layer:
        # `model.to(memory_format=torch.channels_last)` converts every 4-D and 5-D parameter and fails on the latter.
        # Seen with the experts stacked along the output channels it lays out each expert, as a static layer's kernel.
        # Nothing else in the layer has four dimensions.
        def apply_to_experts(tensor: Tensor) -> Tensor:
            stacked = tensor.dim() > 3
            applied = fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2]) if stacked else fn(tensor)
            # Quantized experts and their scale stay as they are in a model that changes its dtype.
            quantized = self.quantized and (tensor is self.weight or tensor is self.weight_scale)
            if quantized and applied.dtype != tensor.dtype:
                return torch.empty_like(applied, dtype=tensor.dtype).copy_(tensor)
            return applied

        if recurse:
            for name, child in self.named_children():  # a parametrized weight's numbers are in a child
                child._apply(apply_to_experts if name == "parametrizations" else fn)
        super()._apply(apply_to_experts, recurse=False)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        # A copy between int8 and floats would go through, and be wrong.
        given = state_dict.get(f"{prefix}weight")
        if given is not None and (given.dtype == torch.int8) != (self.weight.dtype == torch.int8):
            into_quantized = "load into the ordinary network, then call condconv.quantize_experts_(model)"
            remedy = into_quantized if self.quantized else "call condconv.quantize_experts_(model) before loading"
            lists[-1].append(f"`{prefix}weight` must be {self.weight.dtype}, as here, got {given.dtype}: {remedy}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    @staticmethod
    def arguments_of(static: Any) -> dict[str, Any]:
        """Return the arguments, of those a static layer and its conditional twin share, that make the latter."""
        raise NotImplementedError

    @classmethod
    def from_static(
        cls: type[_Layer],
        static: nn.Module,
        num_experts: int = 8,
        *,
        routing: Routing = "sigmoid",
        init: str = "same_output",
        expert_spread: float = 0.5,
        impl: str = "auto",
    ) -> _Layer:
        """Return a conditional layer that computes what a static one does, until it is trained further.

        The routing function starts with equal weights for all inputs, and the experts are copies of the kernel
        scaled by the sum of these, plus differences that cancel. Device, dtype, layout, training mode,
        `requires_grad` and plain attributes are those of the static layer; its forward hooks stay with it. The routing
        function of a frozen layer is frozen too. On the meta device the layer has no values either, until a state dict
        is loaded.

        Args:
            static: The twin: a `torch.nn.Conv2d` for `CondConv2d`, and so on. Not changed.
            num_experts: E.
            routing: As in the layer.
            init: `"same_output"`, or `"random"` to train from scratch as the paper does: each expert is drawn on
                its own, normal with the spread of the kernel (`CondLinear`: or less), and the routing function starts
                at random; the output is then not that of the static layer.
            expert_spread: Difference between the experts, relative to the standard deviation of the kernel; 0 for exact
                copies. Whatever its size it cancels at the start; at a tenth of the default, experts were seen to be
                weighted alike, all rising and falling together, after training.
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
        options = {"device": weight.device, "dtype": weight.dtype, "routing": routing, "impl": impl}
        make: Any = cls
        layer: _Layer = make(**cls.arguments_of(static), bias=bias is not None, num_experts=num_experts, **options)
        if init == "same_output":
            layer.set_experts_(weight, bias, start_constant_(layer.routing_fn), expert_spread)
        else:
            layer.draw_experts_(weight, bias)
        carry_over_(layer, static, cls.static_type)
        if not weight.requires_grad:  # else a kernel that is not to move would, mixed by weights that learn
            layer.routing_fn.requires_grad_(False)
        return layer.train(static.training)

    def set_experts_(self, kernel: Tensor, bias: Tensor | None, routing_weights: Tensor, expert_spread: float) -> None:
        """Set the experts so that under `routing_weights` `[E]` the layer is the static one, in place.

        Args:
            kernel: The static layer's weight.
            bias: The static layer's bias, or `None`.
            routing_weights: `[E]`, what every input is given at the start.
            expert_spread: Difference between the experts, relative to the kernel's standard deviation.
        """
        with torch.no_grad():
            experts = spread_experts(kernel.detach(), routing_weights, expert_spread)
            self.weight = nn.Parameter(experts, requires_grad=kernel.requires_grad)
            if bias is not None:
                biases = spread_experts(bias.detach(), routing_weights, 0.0)
                self.bias = nn.Parameter(biases, requires_grad=bias.requires_grad)

    def spread_for(self, kernel: Tensor) -> Tensor:
        """Return the standard deviation, a scalar, of experts that are drawn in place of a static kernel: its own."""
        return kernel.std(correction=0)

    @torch.no_grad()
    def draw_experts_(self, kernel: Tensor, bias: Tensor | None) -> None:
        """Draw each expert on its own, in place: normal, with the spread for `kernel`; biases are copied."""
        # No number leaves the device: the meta device has none.
        experts = in_layout_of(kernel, self.weight.normal_().mul_(self.spread_for(kernel)))
        self.weight = nn.Parameter(experts, requires_grad=kernel.requires_grad)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
            self.bias.requires_grad_(bias.requires_grad)


def conditional_layers(model: nn.Module) -> dict[str, ConditionalLayer]:
    """Return the layers of a model, itself included, that have experts, by their names in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalLayer)}
