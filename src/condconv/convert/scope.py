"""Which layers share one routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condconv.convert.blocks import Blocks
from condconv.convert.select import Candidate
from condconv.errors import UsageError, few, shown
from condconv.nn import HierarchicalRouting
from condconv.nn.calls import parse_call
from condconv.nn.choice import LayerChoice, patterns_of
from condconv.nn.factory import Routing


@dataclass(frozen=True)
class Scope:
    """How routing is shared.

    Args:
        kind: `"layer"`: each layer routes by its own input. `"block"`: one routing per block, by the block's input, for
            all its layers. `"network"`: one routing for all, by the input of the first block.
        every: With `"block"`, how many consecutive blocks share one routing, by the input of the first of them.
        blocks: Which modules are blocks, as a `LayerChoice`: patterns of their names, or a function of name and
            module; `None` to find residual blocks and the like.

    Source:
        CondConv, section 4 (per block) and Table 3 (every two blocks, single).
    """

    kind: str = "layer"
    every: int = 1
    blocks: LayerChoice | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("layer", "block", "network"):
            raise UsageError(
                f'`scope` must be "layer", "block", "network" or a Scope, got {shown(self.kind)}: "layer" routes each '
                "layer by its own input"
            )
        if type(self.every) is not int or self.every < 1:
            raise UsageError(f"`every` must be a positive number of blocks, got {shown(self.every)}: give 1, 2, ...")
        if self.every > 1 and self.kind != "block":
            raise UsageError(
                f'`every` must be 1 unless the scope is "block", got {self.every} with {self.kind!r}: give "block"'
            )

        if self.blocks is not None:
            patterns_of(self.blocks, "blocks")

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Return the scope for a text: its kind, also with options, such as `"block(every=2)"`.

        Raises:
            UsageError: There is no such scope.
        """
        kind, options = parse_call(text, "scope")
        if set(options) - {"every"}:
            raise UsageError(f'`scope` must have no option but every, got {shown(text)}: write "block(every=2)"')
        return cls(kind, **options)

    def check_routing(self, routing: Routing) -> None:
        """Check that a routing function can be shared in this way.

        Raises:
            UsageError: Hierarchical routing, which passes weights from block to block, is used without blocks.
        """
        made_by = getattr(routing, "func", routing)  # the class inside a functools.partial
        name = parse_call(routing, "routing")[0] if isinstance(routing, str) else None
        hierarchical = name == "hierarchical" or (
            isinstance(made_by, type) and issubclass(made_by, HierarchicalRouting)
        )
        if hierarchical and self.kind != "block":
            raise UsageError(
                f'`scope` must be "block" for hierarchical routing, got {self.kind!r}: it takes the weights of the '
                "block before"
            )


@dataclass(frozen=True)
class Group:
    """Layers that share one routing.

    Attributes:
        leader: Name of the block whose input decides the routing; `None` for one layer that routes by itself.
        layers: Names of the layers, in the order in which they run.
        last: Name of the module (block or layer) after which the weights are no longer needed.
        channels: C of the leader's input; `None` without a leader.
    """

    leader: str | None
    layers: tuple[str, ...]
    last: str
    channels: int | None = None


def group_layers(scope: Scope, candidates: Sequence[Candidate], blocks: Blocks) -> tuple[list[Group], list[str]]:
    """Return the groups of the selected candidates, and notes on layers that no block can route.

    Args:
        scope: How routing is shared.
        candidates: The selected layers in the order in which they run.
        blocks: The blocks of the model.

    Raises:
        UsageError: A scope of several blocks whose first block cannot route.
    """
    if scope.kind == "layer":
        return [_alone(candidate) for candidate in candidates], []
    running = [candidate for candidate in candidates if candidate.runs]
    groups = [_alone(candidate) for candidate in candidates if not candidate.runs]
    notes = []
    if groups:
        names = few(name for group in groups for name in group.layers)
        notes.append(f"route by their own inputs, since they do not run on the example: {names}")
    members: dict[str | None, list[Candidate]] = {}
    for candidate in running:
        members.setdefault(candidate.block, []).append(candidate)
    reasons = {
        block: blocks.why_not_route(block, [candidate.module for candidate in layers])
        for block, layers in members.items()
        if block is not None
    }
    if scope.kind == "network":
        _check_leader(running, reasons)
        return [_shared(running, blocks), *groups], notes
    groups += [_alone(candidate) for candidate in members.pop(None, [])]
    routable = []
    for block, layers in members.items():
        reason = reasons[str(block)]
        if reason is None:
            routable.append(layers)
            continue
        groups += map(_alone, layers)
        notes.append(f"the layers of {block!r} route by their own inputs: it cannot route them, {reason}")
    for start in range(0, len(routable), scope.every):
        groups.append(_shared([layer for block in routable[start : start + scope.every] for layer in block], blocks))
    return groups, notes


def _check_leader(running: Sequence[Candidate], reasons: Mapping[str, str | None]) -> None:
    if not running:
        raise UsageError("`layers` must select one that runs on the example for scope='network', got none: add others")
    first = running[0]
    reason = "it is not part of a block" if first.block is None else reasons[first.block]
    if reason is not None:
        raise UsageError(
            f"`scope` must be 'layer' for {first.name!r}, the first layer to share a routing, got 'network', but "
            f"{reason}: narrow `layers` to those in blocks, or say which modules are blocks with "
            "Scope(..., blocks=...)"
        )


def _alone(candidate: Candidate) -> Group:
    return Group(None, (candidate.name,), candidate.name)


def _shared(candidates: Sequence[Candidate], blocks: Blocks) -> Group:
    first, last = candidates[0], candidates[-1]
    names = tuple(candidate.name for candidate in candidates)
    return Group(first.block, names, last.block or last.name, blocks.channels_of(str(first.block)))
