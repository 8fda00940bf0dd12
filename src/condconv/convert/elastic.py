"""Choose a member of an elastic network by its cost, and cut the network down to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from condconv.convert.make_static import make_static_
from condconv.convert.routing_moments import images_of
from condconv.counting import count
from condconv.counting.tracing import evaluating
from condconv.errors import UsageError, check_type, shown
from condconv.nn.conditional import conditional_layers
from condconv.nn.elastic import Units, activate_, elastic_units, keep_first_


@dataclass(frozen=True)
class Member:
    """A member of an elastic network: the network with the first k experts, or ranks, of each layer.

    Attributes:
        number: k; 0 for the static network of the shared kernels.
        unit: What is counted, `"experts"` or `"ranks"`.
        params: Parameters of what `keep_member_` leaves.
        bytes: Bytes of its parameters and buffers.
        madds: Multiply-adds for one example.
    """

    number: int
    unit: str
    params: int
    bytes: int
    madds: int


class Limits(NamedTuple):
    """A budget, in the words of `set_budget_`; `None` for no limit."""

    num_experts: int | None = None
    rank: int | None = None
    max_bytes: int | None = None
    max_madds: int | None = None


_FIELDS = {"num_experts": "number", "rank": "number", "max_bytes": "bytes", "max_madds": "madds"}
_UNITS = {"num_experts": "experts", "rank": "ranks"}


class NotFiniteError(UsageError):
    """Statistics of batch norms would be infinite or NaN, by the images or the weights."""


def members(model: nn.Module, example_input: Any = None) -> tuple[Member, ...]:
    """Return all members of an elastic network, the smallest first. The model is not changed.

    Args:
        model: With experts around a shared kernel: `experts="deltas"` and sigmoid routing, whose members have fewer
            experts; or `"shared"` and any routing, whose members have fewer ranks.
        example_input: As in `condconv.count`.

    Raises:
        UsageError: The experts or the routing cannot be cut; the message says why.
    """
    return tuple(member for member, _ in cut_members(model, example_input))


def cut_members(model: nn.Module, example_input: Any = None) -> Iterator[tuple[Member, nn.Module]]:
    """Yield all members of an elastic network with a network each that has nothing else, the smallest first.

    Args:
        model: As in `members`; it is not changed.
        example_input: As in `condconv.count`.

    Raises:
        UsageError: As in `members`.
    """
    units = _units_of(model)
    for number in range(units.number + 1):
        cut = copy.deepcopy(model)
        keep_member_(cut, number)
        total = count(cut, example_input).total
        held = sum(each.nbytes for each in (*cut.parameters(), *cut.buffers()))
        yield Member(number, units.name, total.params, held, total.madds), cut


def largest_within(found: Sequence[Member], limits: Limits) -> Member:
    """Return the largest member within a budget.

    Args:
        found: What `members` returned.
        limits: The budget.

    Raises:
        UsageError: No budget is given, it is not of these members, or none is within it.
    """
    given = {name: limit for name, limit in limits._asdict().items() if limit is not None}
    smallest = found[0]
    own = next(name for name, unit in _UNITS.items() if unit == smallest.unit)
    for name, limit in given.items():
        if not _is_whole(limit):
            raise UsageError(f"`{name}` must be a whole number of at least 0, got {shown(limit)}: give a budget")
        if name in _UNITS and name != own:
            raise UsageError(
                f"`{name}` must be None for a network whose members have fewer {smallest.unit}, got {limit}: give "
                f"`{own}`"
            )
    if not given:
        raise UsageError(f"`{own}` must be given, or `max_bytes` or `max_madds`, got None: give one budget")
    within = [each for each in found if all(getattr(each, _FIELDS[name]) <= limit for name, limit in given.items())]
    if not within:
        raise UsageError(
            f"`{'max_bytes' if limits.max_bytes is not None else 'max_madds'}` must leave a member, got "
            f"{shown(given)}: the smallest has {smallest.number} {smallest.unit}, {smallest.bytes} bytes and "
            f"{smallest.madds} multiply-adds"
        )
    return within[-1]


def set_budget_(
    model: nn.Module,
    num_experts: int | None = None,
    *,
    rank: int | None = None,
    max_bytes: int | None = None,
    max_madds: int | None = None,
    example_input: Any = None,
    loader: Iterable[Any] | None = None,
) -> Member:
    """Let an elastic network compute as the largest member within a budget, in place; call it again for another.

    Nothing is removed: `keep_member_` does that. The routing functions of blocks still compute all weights.

    Args:
        model: As in `members`.
        num_experts: Most experts per layer, of a network whose members have fewer experts; `None` for any number.
        rank: Most ranks per layer, of a network whose members have fewer ranks; `None` for any number.
        max_bytes: Most bytes of parameters and buffers; `None` for any number.
        max_madds: Most multiply-adds for one example; `None` for any number.
        example_input: As in `condconv.count`.
        loader: Batches of training images, augmented as in training, or pairs of images and anything else, by which the
            statistics of batch norms are estimated for this member: all members share the norms, and a trained network
            has those of the largest. `None` to leave them.

    Returns:
        The member.

    Raises:
        UsageError: No budget is given or no member is within it, or as in `members`.
    """
    chosen = largest_within(members(model, example_input), Limits(num_experts, rank, max_bytes, max_madds))
    activate_(model, chosen.number)
    if loader is not None:
        estimate_statistics_(model, loader)
    return chosen


def keep_member_(model: nn.Module, number: int) -> None:
    """Remove all but the first k experts, or ranks, of each layer, in place, and the routing of removed experts.

    With k = 0 layers become ordinary ones, and routing functions are removed. The output is that of `set_budget_`.

    Args:
        model: As in `members`.
        number: k.

    Raises:
        UsageError: k is not between 0 and the number of the largest member, or as in `members`.
    """
    units = _units_of(model)
    if not _is_whole(number) or number > units.number:
        raise UsageError(
            f"`number` must be a whole number of {units.name} from 0 to {units.number}, got {shown(number)}: 0 is the "
            "static network"
        )
    activate_(model, None)
    if number == 0:
        centres: dict[str, Tensor | None] = {}
        for name, layer in conditional_layers(model).items():
            experts: Any = layer.experts  # a store that is centred on the shared kernel
            centres[name] = experts.centre
        make_static_(model, centres)
    else:
        keep_first_(model, int(number))


@torch.no_grad()
def estimate_statistics_(model: nn.Module, loader: Iterable[Any]) -> None:
    """Set the running statistics of batch norms to the average over batches, in place; nothing else changes.

    Args:
        model: Any network. Only its batch norms are in training mode meanwhile.
        loader: Batches of images `[B, ...]`, or tuples that begin with them; moved to the model's device. Augment them
            as in training: the weights are made for such statistics, those of plain images can cost points.

    Raises:
        UsageError: The loader has no images, or something else in the place of a batch.
        NotFiniteError: The statistics would not be finite. After any error they are as they were.

    Source:
        Universally slimmable networks, section 3.3 (arXiv:1903.05134).
    """
    _check_module(model)
    norms = [each for each in model.modules() if isinstance(each, _NormBase) and each.running_mean is not None]
    before, momenta = [copy.deepcopy(each.state_dict()) for each in norms], [each.momentum for each in norms]
    seen, finite = 0, False
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average
                norm.train()
            for images in images_of(loader, model, "loader") if norms else ():
                model(images)
                seen += len(images)
            finite = all(bool(each.isfinite().all()) for norm in norms for each in norm.buffers())
        finally:
            for norm, momentum, state in zip(norms, momenta, before, strict=True):
                norm.momentum = momentum
                if not seen or not finite:  # or norms would pass anything on as it is, or nothing but NaN
                    norm.load_state_dict(state)
    if norms and not seen:
        raise UsageError("`loader` must have images, got none: give batches of training images")
    if norms and not finite:
        raise NotFiniteError(
            "`loader` must give finite statistics of batch norms, got inf or nan: leave out images that are not "
            "finite, or take weights from before the network diverged"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _units_of(model: Any) -> Units:
    _check_module(model)
    return elastic_units(model)


def _check_module(model: Any) -> None:
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
