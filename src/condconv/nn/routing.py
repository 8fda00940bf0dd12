"""Routing functions: from a layer's input to one weight per expert, `[B, C, *S] -> [B, E]`."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.standardization import Standardization
from condconv.ops.autocast import autocast_disabled
from condconv.ops.mixing import accumulation_dtype, as_dtype
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import check_device, check_dtype, flag, number, positive, whole
from condconv.ops.validation import check_tensor


class Float32Linear(nn.Module):
    """A linear layer that computes in fp32 (fp64 for fp64) for any dtype of its own, also under autocast.

    Rounding a logit to bf16 moves a routing weight by up to 0.2 %, and the layer is too small for bf16 to save time. It
    is not a `torch.nn.Linear`, so that tools which quantize, adapt or initialise those by type skip routing functions.

    Args:
        in_features: C.
        out_features: O.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel glorot-uniform and set the bias to zero, as the authors do."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C]` to `[B, out_features]`, fp32 or fp64."""
        wide = accumulation_dtype(x.dtype)
        with autocast_disabled(x.device):
            return F.linear(as_dtype(x, wide), as_dtype(self.weight, wide), as_dtype(self.bias, wide))

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def global_average_pool(x: Tensor) -> Tensor:
    """Average `[B, C, *S]` over all positions, to `[B, C]`, in fp32 (fp64 for fp64). `[B, C]` is returned unchanged."""
    wide = accumulation_dtype(x.dtype)
    return as_dtype(x, wide) if x.dim() == 2 else x.flatten(2).mean(2, dtype=wide)


class RoutingFunction(nn.Module):
    """The base: pool, `weigh`, then drop experts in training.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        expert_dropout: Probability that an expert's weight is set to zero for an example in training; the others
            are scaled by `1 / (1 - expert_dropout)`.
        standardize: Whether the pooled input is standardised per channel by running statistics over images, so that
            routing learns at the common learning rate; see `condconv.nn.Standardization`.
        device: Device of the parameters.
        dtype: Dtype of the parameters; the weights are always fp32 (fp64 for fp64 input).

    Raises:
        UsageError: A count below one, or a probability outside `[0, 1)`.

    Source:
        CondConv, section 3; dropping experts in training: the paper, as we recall it.
    """

    _reads_input = True

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        expert_dropout: float = 0.0,
        standardize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = positive("in_channels", in_channels)
        self.num_experts = positive("num_experts", num_experts)
        device = check_device(device)
        check_dtype(dtype)
        with_statistics = flag("standardize", standardize)
        if with_statistics and not self._reads_input:
            raise UsageError(
                f"`standardize` must be False for {type(self).__name__}, which does not read its input, got True: "
                "leave it out"
            )
        self.standardization = Standardization(in_channels, device=device) if with_statistics else None
        rule, remedy = "in [0, 1)", "give a share of the experts, or 0 for none"
        self.expert_dropout = number("expert_dropout", expert_dropout, rule, lambda share: 0 <= share < 1, remedy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the routing weights `[B, E]` of x `[B, C, *S]` or `[B, C]`, fp32 or fp64.

        Raises:
            UsageError: x has another number of channels.
        """
        return self.drop(self.weigh(self.pool(x)))

    def pool(self, x: Tensor) -> Tensor:
        """Average x over its positions, to `[B, C]`, and standardise that if the function does.

        Raises:
            UsageError: x has another number of channels.
        """
        check_tensor("x", x)
        if x.dim() < 2 or plain_shape(x)[1] != self.in_channels:
            raise UsageError(
                f"`x` must have shape [B, {self.in_channels}, ...] to be routed, got {tuple(plain_shape(x))}: "
                "create the routing function with in_channels equal to the channels of x"
            )
        return self.standardize(global_average_pool(x))

    def standardize(self, pooled: Tensor) -> Tensor:
        """Return a pooled input `[B, C, ...]`, standardised if the function does that."""
        return pooled if self.standardization is None else self.standardization(pooled)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return the routing weights `[B, E]` of pooled inputs `[B, C]`. Subclasses define it."""
        raise NotImplementedError

    def drop(self, weights: Tensor) -> Tensor:
        """Apply expert dropout to `[B, E]` in training."""
        return F.dropout(weights, self.expert_dropout, self.training) if self.expert_dropout else weights

    def start_constant_(self) -> Tensor:
        """Make the weights independent of the input, in place, and return them, `[E]` fp64 on the CPU or on meta.

        The converter starts from these weights: experts scaled by them give the old kernel for every input. From there
        the layer learns to distinguish inputs, since the experts differ.
        """
        linears = [module for module in self.modules() if isinstance(module, (Float32Linear, nn.Linear))]
        if linears:
            nn.init.zeros_(linears[-1].weight)
            nn.init.zeros_(linears[-1].bias)
        return self._weights_of_zeros()

    @torch.no_grad()
    def _weights_of_zeros(self) -> Tensor:
        parameter = next(self.parameters(), None)
        device = None if parameter is None else parameter.device
        return _without_device(self.weigh(torch.zeros(1, self.in_channels, device=device, dtype=torch.float64))[0])

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        dropout = f", expert_dropout={self.expert_dropout}" if self.expert_dropout else ""
        standardize = "" if self.standardization is None else ", standardize=True"
        return f"in_channels={self.in_channels}, num_experts={self.num_experts}{dropout}{standardize}"


class SigmoidRouting(RoutingFunction):
    """`sigmoid(Linear(pool(x)))`, the paper's choice: each expert is used independently of the others.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        **options: Of `RoutingFunction`.

    Source:
        CondConv, section 3 and Table 3: within 0.5 points of the best.

    Example:
        >>> SigmoidRouting(16, 4)(torch.randn(2, 16, 7, 7)).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_channels: int, num_experts: int, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.fc = _linear(in_channels, num_experts, options)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return weights `[B, E]`, each between 0 and 1."""
        return torch.sigmoid(self.fc(pooled))


class HiddenRouting(RoutingFunction):
    """`sigmoid(Linear(relu(Linear(pool(x)))))`: a hidden layer of `hidden_ratio * C` units.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        hidden_ratio: Hidden units for each input channel; the paper tries 1/8, 1 and 8.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: `hidden_ratio` is not positive.

    Source:
        CondConv, Table 3: with C units as good as one linear layer (62.2 and 62.0 %), with C/8 and 8C worse.
    """

    def __init__(self, in_channels: int, num_experts: int, *, hidden_ratio: float = 1.0, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        remedy = "the paper tries 1/8, 1 and 8"
        ratio = number("hidden_ratio", hidden_ratio, "above 0 and finite", lambda ratio: 0 < ratio < math.inf, remedy)
        hidden = max(1, round(in_channels * ratio))
        self.hidden = _linear(in_channels, hidden, options)
        self.fc = _linear(hidden, num_experts, options)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return weights `[B, E]`, each between 0 and 1."""
        return torch.sigmoid(self.fc(F.relu(self.hidden(pooled))))


class HierarchicalRouting(RoutingFunction):
    """Sigmoid routing that also takes the weights of the previous routing function as input.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        previous_experts: Number of weights of the previous routing function; 0 for the first of a chain.
        **options: Of `RoutingFunction`.

    Source:
        CondConv, Table 3 ("hierarchical"). Deviation: `convert_` and the networks of this package pass weights from
        block to block; layers outside blocks, such as the classifier, route only by their own input.
    """

    def __init__(self, in_channels: int, num_experts: int, *, previous_experts: int = 0, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.previous_experts = previous_experts = whole("previous_experts", previous_experts)
        self.fc = _linear(in_channels + previous_experts, num_experts, options)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor:
        """Return the routing weights `[B, E]` of x `[B, C, *S]`, given the previous ones `[B, previous_experts]`.

        Raises:
            UsageError: `previous` does not have the declared size.
        """
        if previous is not None:
            check_tensor("previous", previous)
        shape = () if previous is None else plain_shape(previous)
        if (len(shape), *shape[1:]) != ((2, self.previous_experts) if self.previous_experts else (0,)):
            raise UsageError(
                f"`previous` must have shape [B, {self.previous_experts}], got "
                f"{None if previous is None else tuple(shape)}: set previous_experts to their number"
            )
        pooled = self.pool(x)
        if previous is not None:
            pooled = torch.cat([pooled, previous.to(pooled.dtype)], dim=1)
        return self.drop(self.weigh(pooled))

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return weights `[B, E]`, each between 0 and 1, of `[B, C + previous_experts]`."""
        return torch.sigmoid(self.fc(pooled))

    @torch.no_grad()
    def _weights_of_zeros(self) -> Tensor:
        return _without_device(self.weigh(self.fc.weight.new_zeros(1, self.fc.in_features, dtype=torch.float64))[0])


class TopKRouting(RoutingFunction):
    """Softmax over the k largest logits, zero for the others.

    It bounds how many experts an example uses. It saves no arithmetic, since all experts are mixed in one product.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        k: Number of experts that an example uses.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: k is not between 1 and `num_experts`.

    Source:
        Shazeer et al., "Outrageously Large Neural Networks", 2017, without noise. Not in the paper.
    """

    def __init__(self, in_channels: int, num_experts: int, *, k: int = 2, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.k = positive("k", k)
        if self.k > num_experts:
            raise UsageError(
                f"`k` must be at most num_experts = {num_experts}, got {k}: give fewer, or the layer more experts"
            )
        self.fc = _linear(in_channels, num_experts, options)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return weights `[B, E]` that sum to one, at most k of them nonzero."""
        top = self.fc(pooled).topk(self.k, dim=1)
        return (
            torch.zeros_like(top.values[:, :1])
            .expand(-1, self.num_experts)
            .scatter(1, top.indices, top.values.softmax(1))
        )

    def start_constant_(self) -> Tensor:
        """As in the base class, with a small bias that falls with the index: equal logits have no defined order."""
        super().start_constant_()
        with torch.no_grad():
            self.fc.bias.copy_(torch.linspace(0.1, 0.0, self.num_experts))
        return self._weights_of_zeros()

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        return f"{super().extra_repr()}, k={self.k}"


class ConstantRouting(RoutingFunction):
    """The same weights for every input: a control without input-dependence.

    Args:
        in_channels: C of the input; not used. All routing functions have this argument.
        num_experts: Number of experts, E.
        weights: The E weights, or one weight for all experts; `None` for `1 / E`.
        learn: Whether the weights are trained, from these values on: a control that has all that routing has but the
            input. Otherwise they are a buffer.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: `weights` is not a number, nor E of them.
    """

    _reads_input = False
    weights: Tensor

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        weights: Tensor | list[float] | float | None = None,
        learn: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, num_experts, **options)
        values = _as_numbers(1 / num_experts if weights is None else weights)
        if values is not None and values.dim() == 0:
            values = values.repeat(num_experts)
        if values is None or values.shape != (num_experts,):
            raise UsageError(
                f"`weights` must be a number or E = {num_experts} of them, got {shown(weights)}: give one finite "
                "number per expert, or one for all"
            )
        self._start = values.detach().float()
        empty = torch.empty(num_experts, dtype=torch.float32, device=options.get("device"))
        if flag("learn", learn):
            self.weights = nn.Parameter(empty)
        else:
            self.register_buffer("weights", empty)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weights again, in place: those of a layer made on the meta device have no values."""
        self.weights.copy_(self._start)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return the constant, expanded to `[B, E]`."""
        return self.weights.to(pooled.dtype).expand(pooled.shape[0], -1)

    def extra_repr(self) -> str:
        """Describe the sizes in `repr`."""
        return f"{super().extra_repr()}, learn={isinstance(self.weights, nn.Parameter)}"


class ExternalRouting(RoutingFunction):
    """No routing function: the caller passes `routing_weights` to the layer.

    Args:
        in_channels: C of the input; not used.
        num_experts: Number of experts, E.
        **options: Of `RoutingFunction`.
    """

    _reads_input = False

    def forward(self, x: Tensor) -> Tensor:
        """Raise an error: the weights are missing.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"`routing_weights` must be given, [B, {self.num_experts}], got None: this layer is routed from outside; "
            "call layer(x, routing_weights), or create it with routing='sigmoid'"
        )

    def start_constant_(self) -> Tensor:
        """Return weights of `1 / E` each, which the caller's are assumed to be at the start."""
        return torch.full((self.num_experts,), 1 / self.num_experts, dtype=torch.float64)


def _linear(in_features: int, out_features: int, options: dict[str, Any]) -> Float32Linear:
    return Float32Linear(in_features, out_features, device=options.get("device"), dtype=options.get("dtype"))


def _without_device(weights: Tensor) -> Tensor:
    """Return weights on the CPU; those on the meta device have no values, and stay there."""
    return weights if weights.is_meta else weights.cpu()


def _as_numbers(weights: Any) -> Tensor | None:
    """Return finite numbers as a tensor on the CPU, or `None`."""
    try:
        values = torch.as_tensor(weights, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    numbers = not values.is_complex() and values.dtype != torch.bool and bool(values.isfinite().all())
    return values if numbers else None
