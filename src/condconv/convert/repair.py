"""Train the experts and the routing of a compressed network to give what the network gave before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condconv.convert.routing_moments import images_of
from condconv.counting.tracing import evaluating
from condconv.errors import UsageError
from condconv.nn import ConditionalLayer
from condconv.nn.block_routing import routing_functions

_LONGEST = 1.0  # norm of a gradient: the first steps are the largest


def why_not_repair(data: Any) -> str | None:
    """Return why a network cannot be repaired on such data, with the remedy, or `None`."""
    if data is None:
        return "`data` must be given for a repair, got None: give a loader of images"
    if isinstance(data, Iterator):
        return "`data` must start again for each epoch of a repair, got an iterator: give the loader itself, or a list"
    return None


def repair_(
    model: nn.Module,
    teacher: nn.Module,
    layers: list[ConditionalLayer],
    data: Iterable[Any],
    epochs: int,
    lr: float,
    undo: ExitStack,
) -> tuple[float, ...]:
    """Train the experts of layers and their routing functions towards another network, in place.

    Args:
        model: A classifier; nothing else in it learns.
        teacher: The network to follow.
        layers: Of the model.
        data: As in `images_of`, more than once.
        epochs: Passes over it.
        lr: Peak learning rate.
        undo: Gets a callback that restores the values of the parameters.

    Returns:
        Mean divergence of each epoch, in nats.

    Raises:
        UsageError: The network is not a classifier, or the divergence is not finite.
    """
    functions = routing_functions(model)
    modules: list[nn.Module] = [layer.experts for layer in layers]
    modules += [functions[layer.routing_fn] for layer in layers]
    learning = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
    before = [(each, each.detach().clone()) for each in learning]
    learned = [(each, each.requires_grad) for each in model.parameters()]

    def restore() -> None:
        for parameter, value in before:
            parameter.data.copy_(value)

    undo.callback(restore)
    try:
        for parameter, _ in learned:
            parameter.requires_grad_(parameter in learning)
        return _distil_(model, teacher, list(learning), data, epochs, lr)
    finally:
        for parameter, learns in learned:
            parameter.requires_grad_(learns).grad = None


def _distil_(
    model: nn.Module, teacher: nn.Module, parameters: list[nn.Parameter], data: Iterable[Any], epochs: int, lr: float
) -> tuple[float, ...]:
    """Train parameters of a classifier towards the class probabilities of another, in place.

    Both run in evaluation mode, so batch statistics stay as they are. AdamW without decay; the rate falls along a
    cosine.

    Returns:
        Mean divergence of each epoch, in nats.

    Raises:
        UsageError: The network is not a classifier, there is nothing to train, or the divergence is not finite.
    """
    optimizer = torch.optim.AdamW([{"params": parameters}], lr=lr, weight_decay=0.0)
    batches = sum(1 for _ in data)
    losses = []
    with evaluating(model), evaluating(teacher):
        for epoch in range(epochs):
            total, count = 0.0, 0
            for step, images in enumerate(images_of(data, model), epoch * batches):
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / (epochs * batches)))
                with torch.no_grad():
                    wanted = _log_probabilities(teacher(images))
                loss = F.kl_div(_log_probabilities(model(images)), wanted, reduction="batchmean", log_target=True)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, _LONGEST)
                optimizer.step()
                total, count = total + float(loss.detach()) * len(images), count + len(images)
            losses.append(total / count)
            if not math.isfinite(losses[-1]):
                raise UsageError(
                    f"`repair_lr` must let the repair converge, got {lr}, with which it does not: lower it"
                )
    return tuple(losses)


def _log_probabilities(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2 or not output.is_floating_point():
        found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UsageError(
            f"`repair_epochs` must be 0 for a network that does not return [B, classes], got {found}: train it further "
            "with your own loss"
        )
    return F.log_softmax(output.float(), dim=1)
