"""Choose a member of an elastic network by its cost, and cut the network down to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from condconv.convert.make_static import make_static_
from condconv.convert.routing_moments import images_of
from condconv.counting import count
from condconv.counting.tracing import evaluating
from condconv.errors import UsageError, check_type, shown
from condconv.nn.conditional import conditional_layers
from condconv.nn.elastic import activate_, elastic_experts, keep_first_


@dataclass(frozen=True)
class Member:
    """A member of an elastic network: the network with the first k experts of each layer.

    Attributes:
        num_experts: k; 0 for the static network of the shared kernels.
        params: Parameters of what `keep_experts_` leaves.
        bytes: Bytes of its parameters and buffers.
        madds: Multiply-adds for one example.
    """

    num_experts: int
    params: int
    bytes: int
    madds: int


def members(model: nn.Module, example_input: Any = None) -> tuple[Member, ...]:
    """Return all members of an elastic network, the smallest first. The model is not changed.

    Args:
        model: With experts that differ from a shared kernel, `experts="deltas"`, and sigmoid routing.
        example_input: As in `condconv.count`.

    Raises:
        UsageError: The experts or the routing cannot be cut; the message says why.
    """
    _check_module(model)
    found = []
    for number in range(elastic_experts(model) + 1):
        cut = copy.deepcopy(model)
        keep_experts_(cut, number)
        total = count(cut, example_input).total
        held = sum(each.nbytes for each in (*cut.parameters(), *cut.buffers()))
        found.append(Member(number, total.params, held, total.madds))
    return tuple(found)


def largest_within(
    found: Sequence[Member], num_experts: int | None, max_bytes: int | None, max_madds: int | None
) -> Member:
    """Return the largest member within a budget; `None` for no limit.

    Args:
        found: What `members` returned.
        num_experts: Most experts per layer.
        max_bytes: Most bytes.
        max_madds: Most multiply-adds.

    Raises:
        UsageError: No budget is given, or no member is within it.
    """
    limits = {"num_experts": num_experts, "bytes": max_bytes, "madds": max_madds}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in given.items():
        if type(limit) is not int or limit < 0:
            argument = name if name == "num_experts" else f"max_{name}"
            raise UsageError(f"`{argument}` must be a whole number of at least 0, got {shown(limit)}: give a budget")
    if not given:
        raise UsageError("`num_experts` must be given, or `max_bytes` or `max_madds`, got None: give one budget")
    within = [each for each in found if all(getattr(each, name) <= limit for name, limit in given.items())]
    if not within:
        smallest = found[0]
        raise UsageError(
            f"`{'max_bytes' if max_bytes is not None else 'max_madds'}` must leave a member, got {shown(given)}: the "
            f"smallest has {smallest.num_experts} experts, {smallest.bytes} bytes and {smallest.madds} multiply-adds"
        )
    return within[-1]


def set_budget_(
    model: nn.Module,
    num_experts: int | None = None,
    *,
    max_bytes: int | None = None,
    max_madds: int | None = None,
    example_input: Any = None,
    loader: Iterable[Any] | None = None,
) -> Member:
    """Let an elastic network compute as the largest member within a budget, in place; call it again for another.

    Nothing is removed: `keep_experts_` does that. The routing functions of blocks still compute all weights.

    Args:
        model: As in `members`.
        num_experts: Most experts per layer, k.
        max_bytes: Most bytes of parameters and buffers; `None` for any number.
        max_madds: Most multiply-adds for one example; `None` for any number.
        example_input: As in `condconv.count`.
        loader: Batches of training images, or pairs of images and anything else, by which the statistics of batch
            norms are estimated for this member: all members share the norms, and a trained network has those of the
            largest. `None` to leave them.

    Returns:
        The member.

    Raises:
        UsageError: No budget is given or no member is within it, or as in `members`.
    """
    chosen = largest_within(members(model, example_input), num_experts, max_bytes, max_madds)
    activate_(model, chosen.num_experts)
    if loader is not None:
        estimate_statistics_(model, loader)
    return chosen


def keep_experts_(model: nn.Module, num_experts: int) -> None:
    """Remove all but the first k experts of each layer and their routing, in place.

    With k = 0 layers become ordinary ones, and routing functions are removed. The output is that of `set_budget_`.

    Raises:
        UsageError: k is not between 0 and E, or as in `members`.
    """
    _check_module(model)
    most = elastic_experts(model)
    if type(num_experts) is not int or not 0 <= num_experts <= most:
        raise UsageError(
            f"`num_experts` must be a whole number from 0 to {most}, got {shown(num_experts)}: 0 is the static network"
        )
    activate_(model, None)
    if num_experts == 0:
        centres: dict[str, Tensor | None] = {}
        for name, layer in conditional_layers(model).items():
            experts: Any = layer.experts  # a store that is centred on the shared kernel
            centres[name] = experts.centre
        make_static_(model, centres)
    else:
        keep_first_(model, num_experts)


@torch.no_grad()
def estimate_statistics_(model: nn.Module, loader: Iterable[Any]) -> None:
    """Set the running statistics of batch norms to the average over batches, in place; nothing else changes.

    Args:
        model: Any network. Only its batch norms are in training mode meanwhile.
        loader: Batches of images `[B, ...]`, or tuples that begin with them; moved to the model's device.

    Raises:
        UsageError: The loader has no images, or something else in the place of a batch.

    Source:
        Universally slimmable networks, section 3.3 (arXiv:1903.05134).
    """
    _check_module(model)
    norms = [each for each in model.modules() if isinstance(each, _NormBase) and each.running_mean is not None]
    before, momenta = [copy.deepcopy(each.state_dict()) for each in norms], [each.momentum for each in norms]
    seen = 0
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average
                norm.train()
            for images in images_of(loader, model, "loader") if norms else ():
                model(images)
                seen += len(images)
        finally:
            for norm, momentum, state in zip(norms, momenta, before, strict=True):
                norm.momentum = momentum
                if not seen:  # an error, or no images: norms without statistics would pass anything on as it is
                    norm.load_state_dict(state)
    if norms and not seen:
        raise UsageError("`loader` must have images, got none: give batches of training images")


def _check_module(model: Any) -> None:
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
