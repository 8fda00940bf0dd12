"""Mean and covariance of the routing weights that the layers of a network get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condconv.counting.tracing import evaluating
from condconv.errors import UsageError, check_type
from condconv.nn import ConditionalLayer
from condconv.nn.factory import even_weights


class Moments(NamedTuple):
    """Mean `[E]` and covariance `[E, E]` of routing weights, fp64, on the device of the experts."""

    mean: Tensor
    covariance: Tensor


def assumed_moments(name: str, layer: ConditionalLayer) -> Moments:
    """Return what is assumed of a layer without data: the weights of the start, and a variance of 1 / E each.

    Raises:
        UsageError: Its routing does not say how it starts.
    """
    even = even_weights(layer.routing_fn)
    if even is None:
        raise UsageError(
            f"`data` must be given for layers whose routing has no weights of its start, got None for {name!r}: give a "
            "loader of images"
        )
    mean = even.detach().double()
    return Moments(mean, torch.eye(len(mean), dtype=mean.dtype, device=mean.device) / len(mean))


def measured_moments(
    model: nn.Module, layers: Mapping[str, ConditionalLayer], data: Iterable[Any]
) -> tuple[dict[str, Moments], int]:
    """Run a model over images and return what each layer's experts were weighted by, and the number of images.

    Args:
        model: Run in evaluation mode; its compiled parts run uncompiled, since compiled code calls no new hooks.
        layers: By name.
        data: As in `images_of`.

    Raises:
        UsageError: There is no image, a layer does not run, or weights are not finite.
    """
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in layers}

    def add(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        weights = inputs[1].detach().double()
        seen = sums[name]
        for at, value in enumerate((len(weights), weights.sum(0), weights.mT @ weights)):
            seen[at] = seen[at] + value

    handles = [layer.experts.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    images = 0
    try:
        with evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for batch in images_of(data, model):
                model(batch)
                images += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    if images == 0:
        raise UsageError("`data` must hold images, got none: give a loader that has some, or None to assume weights")
    return {name: _moments(name, *seen) for name, seen in sums.items()}, images


def _moments(name: str, count: int, total: Any, squares: Any) -> Moments:
    if count == 0:
        raise UsageError(
            f"`layers` must run on the data in evaluation mode, got {name!r}, which does not: leave it out by `skip`"
        )
    if not bool(squares.isfinite().all()):
        raise UsageError(
            f"`data` must give finite routing weights, got others in {name!r}: the network has diverged, take weights "
            "from before"
        )
    mean = total / count
    return Moments(mean, squares / count - mean.outer(mean))


def images_of(data: Iterable[Any], model: nn.Module, argument: str = "data") -> Iterator[Tensor]:
    """Yield the images of a loader, on the device of a model: its batches, or the first entry of each.

    Args:
        data: The loader.
        model: Whose device it is.
        argument: What messages call the loader.

    Raises:
        UsageError: It cannot be iterated over, or a batch has no tensor in that place.
    """
    check_type(argument, data, Iterable, "be a loader of images", "give batches of images, alone or with classes")
    device = next(model.parameters()).device
    for batch in data:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        check_type(argument, images, Tensor, "hold batches of images", "give tensors, or pairs of images and classes")
        yield images.to(device)
