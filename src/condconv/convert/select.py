"""Choices of layers that take a run of the model. Combine them with `&`, `|` and `~`, and with patterns of names."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from condconv.errors import UsageError, shown
from condconv.nn.choice import LayerChoice, choose_named, patterns_of
from condconv.ops.geometry import is_depthwise
from condconv.ops.scalars import number, positive


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


Candidates = Mapping[str, Candidate]


@dataclass(frozen=True, repr=False)
class Selector:
    """A choice of layers that needs a run of the model, such as `depth(0.5)`, with a text that describes it.

    Combine it with others, and with patterns and functions, by `&` (both), `|` (either) and `~` (not).

    Attributes:
        among: Returns the names of those candidates that are selected.
        text: The text of `repr`; messages repeat it.
        linear: Returns the names of linear layers that were named: no others are considered.
    """

    among: Callable[[Candidates], set[str]]
    text: str
    linear: Callable[[Candidates], set[str]] = lambda candidates: set()

    def __and__(self, other: Selector | LayerChoice) -> Selector:
        return _combined(operator.and_, "&", self, selector_of(other))

    def __or__(self, other: Selector | LayerChoice) -> Selector:
        return _combined(operator.or_, "|", self, selector_of(other))

    def __rand__(self, other: LayerChoice) -> Selector:
        return selector_of(other) & self

    def __ror__(self, other: LayerChoice) -> Selector:
        return selector_of(other) | self

    def __invert__(self) -> Selector:
        return Selector(lambda candidates: set(candidates) - self.among(candidates), f"~{self.text}", self.linear)

    def __repr__(self) -> str:
        return self.text


def selector_of(choice: Selector | LayerChoice, argument: str = "layers") -> Selector:
    """Return a choice as a selector: patterns name linear layers in full only, and a function decides on all.

    Args:
        choice: Patterns, a function, or a selector.
        argument: What the user calls it, for messages.

    Raises:
        UsageError: It is neither; or, once used, it matches nothing.
    """
    if isinstance(choice, Selector):
        return choice
    patterns = patterns_of(choice, argument)

    def among(candidates: Candidates) -> set[str]:
        return {*choose_named({name: each.module for name, each in candidates.items()}, choice, argument=argument)}

    return Selector(among, shown(choice), among if patterns is None else lambda candidates: {*patterns})


def _combined(how: Callable[[set[str], set[str]], set[str]], sign: str, one: Selector, other: Selector) -> Selector:
    return Selector(
        lambda candidates: how(one.among(candidates), other.among(candidates)),
        f"({one.text} {sign} {other.text})",
        lambda candidates: one.linear(candidates) | other.linear(candidates),
    )


def _where(matches: Callable[[Candidate], bool], text: str) -> Selector:
    """Return the selector of what a predicate accepts."""
    return Selector(lambda candidates: {name for name, each in candidates.items() if matches(each)}, text)


def convs() -> Selector:
    """Select every convolution, transposed ones too."""
    return _where(lambda c: not isinstance(c.module, nn.Linear), "convs()")


def channels(minimum: int = 1, maximum: int | None = None) -> Selector:
    """Select layers with at least `minimum` and at most `maximum` output channels.

    Raises:
        UsageError: They are not positive numbers, or `maximum` is below `minimum`.
    """
    least = positive("minimum", minimum)
    if maximum is not None and positive("maximum", maximum) < least:
        raise UsageError(f"`maximum` must be at least `minimum`, {least}, got {maximum}: leave it out for no limit")

    def matches(candidate: Candidate) -> bool:
        module: Any = candidate.module
        count = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        return bool(least <= count and (maximum is None or count <= maximum))

    return _where(matches, f"channels({minimum}, {maximum})")


def depth(start: float, stop: float = 1.0) -> Selector:
    """Select layers by their position among those that run: `depth(0.5)` is the second half.

    Args:
        start: From 0 (the first layer) to 1 (the last).
        stop: From 0 to 1, inclusive.

    Raises:
        UsageError: Not `0 <= start <= stop <= 1`.
    """
    remedy = "0.5 is the middle of the network"
    number("stop", stop, "from 0 to 1", lambda value: 0 <= value <= 1, remedy)
    number("start", start, "from 0 to `stop`", lambda value: 0 <= value <= stop, remedy)

    def matches(candidate: Candidate) -> bool:
        return candidate.position is not None and start <= candidate.position <= stop

    return _where(matches, f"depth({start}, {stop})")


def last_blocks(count: int) -> Selector:
    """Select the convolutions of the last `count` blocks to run (residual, inverted residual, separable, ...).

    Those with a single output pixel, as in squeeze-and-excitation, stay static, as in the paper.

    Raises:
        UsageError: `count` is not positive.
    """
    blocks = positive("count", count)

    def matches(candidate: Candidate) -> bool:
        after = candidate.blocks_after
        return after is not None and after < blocks and candidate.output_pixels != 1

    return _where(matches, f"last_blocks({count})")


def depthwise() -> Selector:
    """Select depthwise convolutions: one input channel per group."""
    return _where(
        lambda c: is_depthwise(getattr(c.module, "groups", 1), getattr(c.module, "in_channels", 0)), "depthwise()"
    )


def pointwise() -> Selector:
    """Select 1x1 convolutions."""
    return _where(lambda c: all(k == 1 for k in getattr(c.module, "kernel_size", (0,))), "pointwise()")


def single_pixel() -> Selector:
    """Select layers whose output has one position, as in squeeze-and-excitation: mixing would cost E times them."""
    return _where(lambda c: c.output_pixels == 1, "single_pixel()")


def runs_in_eval() -> Selector:
    """Select layers that run on the example in evaluation mode; auxiliary heads often run in training only."""
    return _where(lambda c: c.runs, "runs_in_eval()")
