"""Which trained experts can be compressed, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from condconv.convert.refusals import why_not_shared
from condconv.convert.routing_moments import Moments
from condconv.convert.stores import experts_like
from condconv.errors import UsageError, few, shown
from condconv.nn import ConditionalLayer, Experts, SharedExperts
from condconv.nn.experts import ExpertsOption, resolve_experts
from condconv.nn.experts.fitting import differences, root_of
from condconv.nn.experts.which_parts import check_parts
from condconv.nn.hooks import why_not_hooks

_ALIKE = 1e-6  # of the kernel: less than experts that differ by a rounding


def wanted_experts(
    model: nn.Module, layers: Mapping[str, ConditionalLayer], experts: ExpertsOption, grouped: ExpertsOption | None
) -> tuple[dict[str, ExpertsOption], dict[str, str]]:
    """Return the experts that layers are to get, and reasons for those that cannot have them.

    Raises:
        UsageError: The experts are unknown, cannot be fitted, or no layer can have them; or experts are not finite.
    """
    for given in (experts, "dense" if grouped is None else grouped):
        make, options = resolve_experts(given)
        if make is SharedExperts:
            check_parts(**options)  # or each layer would be left as it was
    shared = why_not_shared(model)
    wanted: dict[str, ExpertsOption] = {}
    left = {}
    for name, layer in layers.items():
        option = grouped if layer.experts.spec.groups > 1 else experts
        reason = _why_not(layer.experts) or why_not_hooks(layer.experts) or shared.get(id(layer))
        if reason is None and option is None:
            reason = "it has groups: give such layers experts too, grouped='shared(kernels=2)'"
        elif reason is None and option is not None:
            reason = _why_not_become(layer.experts, option)
            wanted |= {name: option} if reason is None else {}
        if reason is not None:
            left[name] = reason
    check_any(wanted, left)
    return wanted, left


def _why_not(experts: Experts) -> str | None:
    """Return why experts cannot be compressed, or `None`.

    Raises:
        UsageError: They have values that are not finite, or none.
    """
    first = next(experts.parameters())
    if first.is_meta:
        raise UsageError("`model` must have values, got one on the meta device: load the trained weights first")
    if not all(bool(each.isfinite().all()) for each in experts.parameters() if each.is_floating_point()):
        raise UsageError("`model` must have finite experts, got others: the network has diverged, take earlier weights")
    if isinstance(experts, SharedExperts):
        return "its experts are one kernel with routed parts already"
    if experts.parts is not None:
        return f"its experts ({type(experts).__name__}) take further parts of the routing vector, which others do not"
    if not experts.linear:
        return f"its experts ({type(experts).__name__}) are not mixed linearly, so no mean kernel stands for them"
    if experts.quantized:
        return f"its experts are quantized ({first.dtype}): compress the network that they came from"
    return None


def _why_not_become(experts: Experts, option: ExpertsOption) -> str | None:
    """Return why experts cannot be exchanged for others, or `None`.

    Raises:
        UsageError: Such experts cannot be fitted to any.
    """
    try:
        new = experts_like(experts, option)
    except UsageError as error:
        return str(error)
    if (reason := new.why_not_fit()) is not None:
        raise UsageError(f"`experts` must be of a kind that can be fitted, got {shown(option)}: {reason}")
    if bytes_of(new) >= bytes_of(experts):
        return f"{shown(option)} would take {bytes_of(new):,} bytes, and its experts take {bytes_of(experts):,}"
    return None


def why_alike(experts: Experts, moments: Moments) -> str | None:
    """Return why there is nothing to fit, or `None`."""
    kernels, _ = differences(experts, moments.mean)
    norm = experts.fold(moments.mean)[0].norm()
    if not (kernels - kernels.mean(0)).norm() > _ALIKE * norm:
        return "its experts are all alike: train it first, or make it static"
    if not torch.tensordot(root_of(moments.covariance), kernels, dims=1).norm() > _ALIKE * norm:
        return "its routing gives all images the same weights: train it first, or make it static"
    return None


def check_any(able: Mapping[str, Any], left: Mapping[str, str]) -> None:
    """Check that a layer can be compressed.

    Raises:
        UsageError: None can; with the first reason.
    """
    if not able:
        name, reason = next(iter(left.items()))
        raise UsageError(f"`model` must have a layer whose experts can be compressed, got {name!r}: {reason}")


def check_errors(fitted: Mapping[str, tuple[Experts, float]], max_error: float) -> None:
    """Check the relative errors of layers that are fitted, which come with their experts.

    Raises:
        UsageError: One is too large.
    """
    worst = {name: error for name, (_, error) in fitted.items() if not error <= max_error}
    if worst:
        told = few(f"{error:.2f} in {name!r}" for name, error in worst.items())
        raise UsageError(
            f"`max_error` must be at least the relative error of each layer's mixture, got {max_error} for {told}: "
            "give a higher rank, leave layers out by `skip`, or raise it and repair"
        )


def bytes_of(experts: Experts) -> int:
    """Return the bytes of all that the experts learn."""
    return sum(each.nbytes for each in experts.parameters())
