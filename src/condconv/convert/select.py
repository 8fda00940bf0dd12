"""Selectors: which layers of a model to convert. Combine them with `&`, `|` and `~`."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from condconv.errors import UsageError, shown
from condconv.ops.geometry import is_depthwise


@dataclass(frozen=True)
class Candidate:
    """A convolution or linear layer of a model, and its place in it.

    Attributes:
        name: Its name in the model.
        module: The layer.
        position: From 0 (the first layer to run) to 1 (the last), among the candidates that run on the example, or,
            without an example that could be run, in the order of registration; `None` if it does not run.
        output_pixels: Positions of its output; `None` if it does not run, or no example could be run.
        block: Name of the block it belongs to; `None` outside any block.
        blocks_after: How many blocks with candidates follow its block in order; `None` outside any block, and if it
            does not run.
    """

    name: str
    module: nn.Module
    position: float | None
    output_pixels: int | None
    block: str | None
    blocks_after: int | None

    @property
    def runs(self) -> bool:
        """Whether it runs on the example in evaluation mode, as far as is known."""
        return self.position is not None


@dataclass(frozen=True, repr=False)
class Selector:
    """A predicate over candidates, with a text that describes it.

    Attributes:
        matches: The predicate.
        text: The text of `repr`; messages repeat it.
        types: Layer types that were named: a linear layer is considered only if it is among them.
    """

    matches: Callable[[Candidate], bool]
    text: str
    types: tuple[type[nn.Module], ...] = ()

    def __call__(self, candidate: Candidate) -> bool:
        """Return whether the candidate is selected."""
        return self.matches(candidate)

    def __and__(self, other: Selector) -> Selector:
        return Selector(lambda c: self(c) and other(c), f"({self.text} & {other.text})", self.types + other.types)

    def __or__(self, other: Selector) -> Selector:
        return Selector(lambda c: self(c) or other(c), f"({self.text} | {other.text})", self.types + other.types)

    def __invert__(self) -> Selector:
        return Selector(lambda c: not self(c), f"~{self.text}", self.types)

    def __repr__(self) -> str:
        return self.text


def convs() -> Selector:
    """Select every convolution, transposed ones too."""
    return Selector(lambda c: not isinstance(c.module, nn.Linear), "convs()")


def name(*patterns: str) -> Selector:
    """Select layers whose name matches a shell-style pattern: `name("layer4.*", "*.downsample.0")`.

    Raises:
        UsageError: A pattern is not a string.
    """
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"`patterns` must be strings, got {shown(patterns)}: give several one after the other")
    return Selector(
        lambda c: any(fnmatch.fnmatchcase(c.name, pattern) for pattern in patterns),
        f"name({', '.join(map(repr, patterns))})",
    )


def types(*kinds: type[nn.Module]) -> Selector:
    """Select layers of the given classes: `types(nn.Conv2d, nn.Linear)`. The only way to select linear layers."""
    if not all(isinstance(kind, type) for kind in kinds):
        raise UsageError(f"`kinds` must be classes of layers, got {shown(kinds)}: give torch.nn.Conv2d, for instance")
    return Selector(lambda c: isinstance(c.module, kinds), f"types({', '.join(k.__name__ for k in kinds)})", kinds)


def channels(minimum: int = 1, maximum: int | None = None) -> Selector:
    """Select layers with at least `minimum` and at most `maximum` output channels."""

    def matches(candidate: Candidate) -> bool:
        module: Any = candidate.module
        count = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        return bool(minimum <= count and (maximum is None or count <= maximum))

    return Selector(matches, f"channels({minimum}, {maximum})")


def depth(start: float, stop: float = 1.0) -> Selector:
    """Select layers by their position among those that run: `depth(0.5)` is the second half.

    Args:
        start: From 0 (the first layer) to 1 (the last).
        stop: From 0 to 1, inclusive.

    Raises:
        UsageError: Not `0 <= start <= stop <= 1`.
    """
    if not 0 <= start <= stop <= 1:
        raise UsageError(
            f"`start` and `stop` must satisfy 0 <= start <= stop <= 1, got {start!r} and {stop!r}: give shares of the "
            "network, such as depth(0.5)"
        )

    def matches(candidate: Candidate) -> bool:
        return candidate.position is not None and start <= candidate.position <= stop

    return Selector(matches, f"depth({start}, {stop})")


def last_blocks(count: int) -> Selector:
    """Select the convolutions of the last `count` blocks to run (residual, inverted residual, separable, ...).

    Those with a single output pixel, as in squeeze-and-excitation, stay static, as in the paper.

    Raises:
        UsageError: `count` is not positive.
    """
    if count < 1:
        raise UsageError(f"`count` must be a positive number of blocks, got {count!r}: give 1 for the last block alone")

    def matches(candidate: Candidate) -> bool:
        after = candidate.blocks_after
        return after is not None and after < count and candidate.output_pixels != 1

    return Selector(matches, f"last_blocks({count})")


def depthwise() -> Selector:
    """Select depthwise convolutions: one input channel per group."""
    return Selector(
        lambda c: is_depthwise(getattr(c.module, "groups", 1), getattr(c.module, "in_channels", 0)), "depthwise()"
    )


def pointwise() -> Selector:
    """Select 1x1 convolutions."""
    return Selector(lambda c: all(k == 1 for k in getattr(c.module, "kernel_size", (0,))), "pointwise()")


def single_pixel() -> Selector:
    """Select layers whose output has one position, as in squeeze-and-excitation: mixing would cost E times them."""
    return Selector(lambda c: c.output_pixels == 1, "single_pixel()")


def runs_in_eval() -> Selector:
    """Select layers that run on the example in evaluation mode; auxiliary heads often run in training only."""
    return Selector(lambda c: c.runs, "runs_in_eval()")
