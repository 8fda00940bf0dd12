"""Routing functions: from a layer's input to one weight per expert, `[B, C, *S] -> [B, E]`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.float32_linear import Float32Linear
from condconv.nn.heads import OF_EXPERTS, Heads, Part, at_start, check_parts
from condconv.nn.standardization import Standardization
from condconv.ops.mixing import accumulation_dtype, as_dtype
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import check_device, check_dtype, flag, number, positive, whole
from condconv.ops.validation import check_tensor

_MOST_PREVIOUS = 4096  # experts, as in a name of the zoo
_MOST_HIDDEN = 65_536  # units: 8 times the channels of the widest layers of the paper are 16,384


def global_average_pool(x: Tensor) -> Tensor:
    """Average `[B, C, *S]` over all positions, to `[B, C]`, in fp32 (fp64 for fp64). `[B, C]` is returned unchanged."""
    wide = accumulation_dtype(x.dtype)
    return as_dtype(x, wide) if x.dim() == 2 else x.flatten(2).mean(2, dtype=wide)


def _hidden_units(in_channels: int, hidden_ratio: float, least_hidden: int) -> int:
    """Return the units of a hidden layer; a text in a file must not ask for more memory than anybody uses.

    Raises:
        UsageError: There are too many.
    """
    wanted = max(least_hidden, in_channels * hidden_ratio)
    if wanted > _MOST_HIDDEN:
        raise UsageError(
            f"`hidden_ratio` and `least_hidden` must give at most {_MOST_HIDDEN:,} hidden units, got {wanted:,.6g} for "
            f"{in_channels} channels: give a smaller one, the paper tries ratios of 1/8, 1 and 8"
        )
    return max(least_hidden, round(wanted))


class RoutingFunction(nn.Module):
    """The base: a trunk (pool, standardise, hidden layer; the latter two if asked for), and heads on it.

    The head of the experts' weights is `weigh`, which subclasses define; in training, experts are dropped after it.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        hidden_ratio: Units of a hidden layer with a ReLU, for each input channel; `None` for no hidden layer.
        least_hidden: The fewest hidden units, if there is a hidden layer.
        expert_dropout: Probability that an expert's weight is set to zero for an example in training; the others
            are scaled by `1 / (1 - expert_dropout)`.
        standardize: Whether the pooled input is standardised per channel by running statistics over images, so that
            routing learns at the common learning rate; see `condconv.nn.Standardization`.
        parts: The parts of the routing vector, as `Experts.parts` of the layer has them; `None` for one weight per
            expert and nothing else.
        device: Device of the parameters.
        dtype: Dtype of the parameters; the weights are always fp32 (fp64 for fp64 input).

    Attributes:
        num_weights: N, the length of the routing vector: E and the sizes of the other parts.

    Raises:
        UsageError: A count below one, a number outside its range, or a part of the trunk that it does not have.

    Source:
        CondConv, section 3; dropping experts in training: the paper, as we recall it.
    """

    _reads_input = True
    _has_hidden = True

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        hidden_ratio: float | None = None,
        least_hidden: int = 1,
        expert_dropout: float = 0.0,
        standardize: bool = False,
        parts: Sequence[Part] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = positive("in_channels", in_channels)
        self.num_experts = positive("num_experts", num_experts)
        self.parts = check_parts(parts, self.num_experts)
        self.num_weights = sum(part.size for part in self.parts)
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
        self._where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden: nn.Module | None = None
        self._inputs = self._width = in_channels  # of the trunk, and of the heads
        least_hidden = positive("least_hidden", least_hidden)
        if hidden_ratio is not None:
            self._width = _hidden_units(in_channels, self._checked(hidden_ratio), least_hidden)
            self.hidden = Float32Linear(in_channels, self._width, **self._where)
        others = [part for part in self.parts if part.name != OF_EXPERTS]
        self.heads = Heads(self._width, others, **self._where) if others and self._reads_input else None

    def _checked(self, hidden_ratio: float) -> float:
        """Return the ratio of a hidden layer.

        Raises:
            UsageError: It is out of range, or the function has no hidden layer.
        """
        if not self._has_hidden:
            raise UsageError(
                f"`hidden_ratio` must be None for {type(self).__name__}, which has no hidden layer, got "
                f"{shown(hidden_ratio)}: leave it out"
            )
        remedy = "the paper tries 1/8, 1 and 8"
        return number("hidden_ratio", hidden_ratio, "above 0 and finite", lambda ratio: 0 < ratio < math.inf, remedy)

    @property
    def mixes(self) -> bool:
        """Whether there are weights of experts, and not only other parts."""
        return any(part.name == OF_EXPERTS for part in self.parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the routing weights `[B, N]` of x `[B, C, *S]` or `[B, C]`, fp32 or fp64.

        Raises:
            UsageError: x has another number of channels.
        """
        return self.route(self.pool(x))

    def route(self, pooled: Tensor) -> Tensor:
        """Return the routing weights `[B, N, ...]` of pooled inputs `[B, C, ...]`; in training experts are dropped."""
        code = self.encode(pooled)
        return self.join(self.drop(self.weigh(code)) if self.mixes else None, code)

    def encode(self, pooled: Tensor) -> Tensor:
        """Return the hidden units `[B, H, ...]` of pooled inputs `[B, C, ...]`, or these if there are none."""
        return pooled if self.hidden is None else F.relu(self.hidden(pooled))

    def join(self, weights: Tensor | None, code: Tensor) -> Tensor:
        """Return the weights of the experts, if there are any, and after them the other parts."""
        if self.heads is None:
            assert weights is not None
            return weights
        others = self.heads(code)
        return others if weights is None else torch.cat([weights, others.to(weights.dtype)], 1)

    def head(self) -> Any:
        """Return a new linear map to one score per expert; `None` if no experts are weighed."""
        return Float32Linear(self._width, self.num_experts, **self._where) if self.mixes else None

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

    def weigh(self, code: Tensor) -> Tensor:
        """Return the experts' weights `[B, E]` of what `encode` returns, `[B, H]`. Subclasses define it."""
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
        for last in linears[-1:] + ([] if self.heads is None else [self.heads.linear]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        return self._weights_of_zeros()

    @torch.no_grad()
    def _weights_of_zeros(self) -> Tensor:
        parameter = next(self.parameters(), None)
        device = None if parameter is None else parameter.device
        code = self.encode(torch.zeros(1, self._inputs, device=device, dtype=torch.float64))
        return _without_device(self.join(self.weigh(code) if self.mixes else None, code)[0])

    @property
    def why_not_fewer(self) -> str | None:
        """Why it cannot give the first k of its weights alone, or `None`; see `keep_`."""
        return "the weight of each expert depends on the others', or does not come from the function"

    def keep_(self, num_experts: int) -> None:
        """Give the weights of the first experts only, in place; only where `why_not_fewer` is `None`."""
        raise NotImplementedError

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
        self.fc = self.head()

    def weigh(self, code: Tensor) -> Tensor:
        """Return weights `[B, E]`, each between 0 and 1."""
        return torch.sigmoid(self.fc(code))

    @property
    def why_not_fewer(self) -> str | None:
        """See the base; each expert has a sigmoid of its own."""
        return None if len(self.parts) == 1 and self.mixes else "it also gives other parts than weights of experts"

    @torch.no_grad()
    def keep_(self, num_experts: int) -> None:
        """See the base."""
        for name in ("weight", "bias"):
            old = getattr(self.fc, name)
            setattr(self.fc, name, nn.Parameter(old[:num_experts].clone(), old.requires_grad))
        self.fc.out_features = self.num_experts = self.num_weights = num_experts
        self.parts = check_parts(None, num_experts)


class HiddenRouting(SigmoidRouting):
    """`sigmoid(Linear(relu(Linear(pool(x)))))`: sigmoid routing with a hidden layer.

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
        super().__init__(in_channels, num_experts, hidden_ratio=self._checked(hidden_ratio), **options)


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

    _has_hidden = False

    def __init__(self, in_channels: int, num_experts: int, *, previous_experts: int = 0, **options: Any) -> None:
        super().__init__(in_channels, num_experts, **options)
        self.previous_experts = previous_experts = whole("previous_experts", previous_experts)
        if previous_experts > _MOST_PREVIOUS:
            raise UsageError(
                f"`previous_experts` must be at most {_MOST_PREVIOUS}, got {previous_experts}: it is the number of "
                "experts of the block before"
            )
        if self.heads is not None or not self.mixes:
            raise UsageError(
                "`routing` must not be hierarchical for experts that want more than one weight each, got it: take "
                "'hidden' or 'softmax'"
            )
        self._inputs += previous_experts
        self.fc = Float32Linear(self._inputs, num_experts, **self._where)

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
        self.fc = self.head()

    def weigh(self, code: Tensor) -> Tensor:
        """Return weights `[B, E]` that sum to one, at most k of them nonzero."""
        top = self.fc(code).topk(self.k, dim=1)
        return (
            torch.zeros_like(top.values[:, :1])
            .expand(-1, self.num_experts)
            .scatter(1, top.indices, top.values.softmax(1))
        )

    def start_constant_(self) -> Tensor:
        """As in the base class, with a small bias that falls with the index: equal logits have no defined order."""
        start = super().start_constant_()
        if not self.mixes:
            return start
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

    _reads_input = _has_hidden = False
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
        self._start = at_start(self.parts).float()
        if self.mixes:
            self._start[:num_experts] = values.detach()
        empty = torch.empty(self.num_weights, dtype=torch.float32, device=options.get("device"))
        if flag("learn", learn):
            self.weights = nn.Parameter(empty)
        else:
            self.register_buffer("weights", empty)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weights again, in place: those of a layer made on the meta device have no values."""
        self.weights.copy_(self._start)

    def weigh(self, code: Tensor) -> Tensor:
        """Return the constant weights of the experts, expanded to `[B, E]`."""
        return self.weights[: self.num_experts].to(code.dtype).expand(code.shape[0], -1)

    def join(self, weights: Tensor | None, code: Tensor) -> Tensor:
        """Return the weights of the experts, and after them the other parts as they are at the start."""
        if weights is not None and self.num_weights == self.num_experts:
            return weights
        others = self.weights[self.num_experts if self.mixes else 0 :].to(code.dtype).expand(code.shape[0], -1)
        return others if weights is None else torch.cat([weights, others], 1)

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

    _reads_input = _has_hidden = False

    def forward(self, x: Tensor) -> Tensor:
        """Raise an error: the weights are missing.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"`routing_weights` must be given, [B, {self.num_weights}], got None: this layer is routed from outside; "
            "call layer(x, routing_weights), or create it with routing='sigmoid'"
        )

    def start_constant_(self) -> Tensor:
        """Return weights of `1 / E` each, which the caller's are assumed to be at the start."""
        return at_start(self.parts)


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
