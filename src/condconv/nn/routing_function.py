"""What every routing function is: from a layer's input to its routing weights, `[B, C, *S] -> [B, N]`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.float32_linear import Float32Linear
from condconv.nn.heads import OF_EXPERTS, Heads, Part, check_parts
from condconv.nn.standardization import Standardization
from condconv.ops.mixing import accumulation_dtype, as_dtype
from condconv.ops.recording import plain_shape
from condconv.ops.scalars import check_device, check_dtype, flag, number, positive
from condconv.ops.validation import check_tensor

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


def _without_device(weights: Tensor) -> Tensor:
    """Return weights on the CPU; those on the meta device have no values, and stay there."""
    return weights if weights.is_meta else weights.cpu()
