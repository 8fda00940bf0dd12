"""From trained experts to one kernel and a small routed part, weighted by what the routing does."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from condconv.convert.compressible import bytes_of, check_any, check_errors, wanted_experts, why_alike
from condconv.convert.compression_report import CompressedLayer, CompressionReport
from condconv.convert.repair import repair_, why_not_repair
from condconv.convert.routing_moments import Moments, assumed_moments, measured_moments
from condconv.convert.stores import experts_like
from condconv.counting.parameters import count_parameters
from condconv.errors import UsageError, check_type, few, shown
from condconv.nn import Experts
from condconv.nn.choice import LayerChoice, choose_named
from condconv.nn.conditional import conditional_layers
from condconv.nn.experts import ExpertsOption
from condconv.nn.experts.fitting import relative_error, root_of

_WARN_ABOVE = 0.1


def compress_experts_(
    model: nn.Module,
    experts: ExpertsOption = "shared(outputs=16)",
    *,
    grouped: ExpertsOption | None = "shared(kernels=2)",
    data: Iterable[Any] | None = None,
    layers: LayerChoice | None = None,
    skip: LayerChoice | None = None,
    max_error: float = 0.3,
    repair_epochs: int = 0,
    repair_lr: float = 1e-3,
) -> CompressionReport:
    """Replace trained experts by one kernel and a small routed part each, in place.

    The kernel is exactly the mixture of the mean routing weights. The routed part is fitted to what the experts differ
    by, weighted by the covariance of the routing weights: what the routing never does costs nothing. Routing functions
    stay as they are. All or nothing: after an error the model is unchanged.

    To load a compressed network, create it, call `exchange_experts_(model, report.stores)`, then `load_state_dict`.

    Args:
        model: A network with trained conditional layers whose experts are mixed linearly, such as dense ones or deltas.
        experts: What the layers get: `"shared(outputs=R)"`, a kernel through R channels, or `"shared(kernels=K)"`, K
            whole kernels.
        grouped: The same for layers with groups, depthwise ones too, which no low rank fits; `None` leaves them as they
            are.
        data: Batches of images, alone or first in a pair, over which the routing is measured; a `DataLoader`, say.
            `None` to assume the weights of the start, varying with 1 / E each.
        layers: Which layers, as a `LayerChoice`; `None` for all.
        skip: Which of them stay as they are; `None` for none.
        max_error: Largest relative error of a layer's mixture, above which nothing is compressed; above 0.1 a note of
            the report names the layer.
        repair_epochs: Passes over `data` in which the compressed experts and the routing functions learn to give the
            class probabilities of the old network; 0 for none. `data` must be a loader that starts again.
        repair_lr: Peak learning rate of the repair.

    Returns:
        The report; `print` it for a table.

    Raises:
        UsageError: No layer can be compressed (the message has the first reason), an error is too large, experts are
            not finite, or the data has no images.

    Source:
        Tucker decompositions weighted by use, as of experts of language models: D2-MoE (arXiv:2502.17298), MoE-SVD.

    Example:
        >>> net = torch.nn.Sequential(condconv.CondConv2d(16, 32, 3, num_experts=4, experts="dense"))
        >>> images = [torch.randn(8, 16, 9, 9) for _ in range(4)]
        >>> report = compress_experts_(net, "shared(outputs=8)", data=images)  # experts drawn at random
        >>> report.params_before, report.params_after
        (18628, 6384)
    """
    _check(model, data, max_error, repair_epochs, repair_lr)
    layers_now = conditional_layers(model)
    if not layers_now:
        raise UsageError(
            f"`model` must have conditional layers, got {type(model).__name__} without any: only experts are compressed"
        )
    chosen = choose_named(layers_now, layers, skip, kind="conditional layers")
    wanted, left = wanted_experts(model, chosen, experts, grouped)
    able = {name: chosen[name] for name in wanted}
    images = None
    if data is None:
        moments = {name: assumed_moments(name, layer) for name, layer in able.items()}
    else:
        moments, images = measured_moments(model, able, data)
    fitted: dict[str, tuple[Experts, float]] = {}
    for name, layer in able.items():
        reason = why_alike(layer.experts, moments[name])
        if reason is None:
            fitted[name] = _fit(layer.experts, wanted[name], moments[name])
        else:
            left[name] = reason
    check_any(fitted, left)
    check_errors(fitted, max_error)
    rows = [
        CompressedLayer(name, _text(wanted[name]), bytes_of(chosen[name].experts), bytes_of(new), error)
        for name, (new, error) in fitted.items()
    ]
    before = count_parameters(model.parameters())
    repair: tuple[float, ...] = ()
    with ExitStack() as undo:
        teacher = copy.deepcopy(model) if repair_epochs else None
        for name, (new, _) in fitted.items():
            undo.callback(setattr, chosen[name], "experts", chosen[name].experts)
            chosen[name].experts = new
        if teacher is not None and data is not None:
            repair = repair_(model, teacher, [chosen[name] for name in fitted], data, repair_epochs, repair_lr, undo)
        undo.pop_all()
    high = [row.name for row in rows if row.error > _WARN_ABOVE]
    notes = (f"relative error above {_WARN_ABOVE}: {few(high)}; compare the accuracy, or repair",) if high else ()
    return CompressionReport(tuple(rows), left, images, before, count_parameters(model.parameters()), repair, notes)


def _check(model: nn.Module, data: Any, max_error: Any, repair_epochs: Any, repair_lr: Any) -> None:
    """Check everything that needs no look at the layers.

    Raises:
        UsageError: An argument breaks its rule.
    """
    check_type("model", model, nn.Module, "be a torch.nn.Module", "give the network itself")
    if torch.is_inference_mode_enabled():
        raise UsageError("`model` must be compressed outside torch.inference_mode, got it on: leave it first")
    for name, value, least in (("max_error", max_error, 0), ("repair_lr", repair_lr, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value:
            raise UsageError(
                f"`{name}` must be a number above {least}, got {shown(value)}: leave it out for the default"
            )
    if type(repair_epochs) is not int or repair_epochs < 0:
        raise UsageError(f"`repair_epochs` must be a whole number of at least 0, got {shown(repair_epochs)}: 0 is none")
    if repair_epochs and (reason := why_not_repair(data)) is not None:
        raise UsageError(reason)


def _fit(experts: Experts, option: ExpertsOption, moments: Moments) -> tuple[Experts, float]:
    """Return new experts that are fitted to others, and the relative error of their mixture."""
    new = experts_like(experts, option)
    new.fit_(experts, *moments)
    return new, relative_error(experts, new, moments.mean, root_of(moments.covariance))


def _text(experts: ExpertsOption) -> str | None:
    return experts if isinstance(experts, str) else None
