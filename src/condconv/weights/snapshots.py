"""Make several checkpoints of one static network the experts of a conditional one.

Kernels of two checkpoints cannot be mixed as they are, since each was trained with its own batch norm after it. The
norm's scale and shift therefore move into the expert, relative to one norm that all share. Checkpoint k has
`s_k = gamma_k / sqrt(var_k + eps)` and `t_k = beta_k - s_k mean_k (+ s_k bias_k)`; `s` and `t`, the mean of all `t_k`,
are those of the shared norm. Then expert k is `W_k s_k / s` with bias `(t_k - t) / s`. The network starts as the
average of the networks with their norms folded, and a routing that picks one expert gives that checkpoint's layer:
exactly if the layer has a bias, up to the shift `t_k - t` if it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condconv.convert.fold import find_norms
from condconv.counting.tracing import arguments_of
from condconv.errors import UsageError, few, shown
from condconv.nn import ConditionalLayer, DenseExperts, LayerChoice
from condconv.nn.classes import is_conv
from condconv.ops.quantized import along_outputs
from condconv.weights.layers import Layers
from condconv.weights.load_plan import LoadPlan, plan_load
from condconv.weights.report import LoadReport
from condconv.weights.source import Source
from condconv.weights.write import copy_tensors_, start_routing_


def load_snapshots(network: Layers, sources: Sequence[Source], skip: LayerChoice | None, example: Any) -> LoadReport:
    """Make each checkpoint one expert of every conditional layer, in place.

    Args:
        network: A conditional network.
        sources: The checkpoints, on the CPU.
        skip: As in `load_pretrained`.
        example: As `example_input` of `load_pretrained`.

    Raises:
        UsageError: There are more or fewer checkpoints than experts, or one does not fit.
    """
    model, layers = network.model, network.conditional
    wrong = {name: layer.num_experts for name, layer in layers.items() if layer.num_experts != len(sources)}
    if not layers or wrong:
        found = f"{len(sources)} for {next(iter(wrong.values()))} experts" if wrong else "a network without experts"
        raise UsageError(
            f"`path` must be one file, or one static network's file for each expert, got {found}: give as many files"
        )
    dense = {name: layer.experts for name, layer in layers.items() if isinstance(layer.experts, DenseExperts)}
    if other := sorted(layers.keys() - dense.keys()):
        raise UsageError(
            f"`model` must have dense experts for several checkpoints, got {type(layers[other[0]].experts).__name__} "
            f'in {shown(other[0])}: create the network with experts="dense"'
        )
    plans = [plan_load(network, source, skip) for source in sources]
    first = plans[0]
    for plan, source in zip(plans, sources, strict=True):
        _check_alike(plan, first, layers, source.name)
    with arguments_of(model, example) as arguments:
        # Hooks do not fire inside what torch.compile made: what it was made of is run.
        pairs, _ = find_norms(getattr(model, "_orig_mod", model), arguments)
    norms = {network.names[layer]: (network.names[norm], norm) for layer, norm in pairs}
    _check_norms(model, first.fit.static, norms, first.skipped)
    copy_tensors_(network, first.fit.copies)
    shifted = []
    for name, start in start_routing_(network, first.fit.static).items():
        norm_name, norm = norms.get(name, (None, None))
        own = [_layer_tensors(plan.matched.tensors, name, norm_name) for plan in plans]
        if _set_layer_(dense[name], norm, own, start):
            shifted.append(name)
    alone = [name for name in first.fit.static if name not in norms and is_conv(layers[name])]
    return LoadReport(
        f"{len(sources)} checkpoints",
        first.matched.how,
        network.own_names(first.fit.copies),
        first.fit.static,
        network.own_names(first.skipped),
        (*first.notes, *_notes(shifted, alone)),
    )


def _notes(shifted: list[str], alone: list[str]) -> tuple[str, ...]:
    notes = []
    if shifted:
        notes.append(
            f"{len(shifted)} layers have no bias to hold each checkpoint's own shift after the batch norm and start "
            "with the mean shift"
        )
    if alone:
        notes.append(
            f"{len(alone)} layers have no batch norm right after them to fold ({few(alone)}): their kernels were taken "
            "as they are, though each checkpoint trained its own at the scale of its own norms, so the start is "
            "not the average of the networks"
        )
    return tuple(notes)


def _check_alike(plan: LoadPlan, first: LoadPlan, layers: Mapping[str, ConditionalLayer], source: str) -> None:
    """Refuse checkpoints of conditional networks, or with other names than the first's for what is skipped."""
    static = {*plan.fit.static}
    trained = [name for name in layers if name not in static and f"{name}.weight" not in plan.skipped]
    if trained:
        raise UsageError(
            f"`path` must hold static networks, got {source}, which has experts for {trained[0]}: load it alone"
        )
    if plan.skipped != first.skipped:
        other = min({*plan.skipped} ^ {*first.skipped})
        raise UsageError(
            f"`skip` must leave out the same of all checkpoints, got {other} of some of them: take the network's names"
        )


def _check_norms(
    model: nn.Module, layers: Iterable[str], norms: Mapping[str, tuple[str, _BatchNorm]], skipped: tuple[str, ...]
) -> None:
    """Refuse norms that cannot hold the average, and `skip` patterns that keep a part of what moves into experts."""
    for layer in layers:
        norm_name, norm = norms.get(layer, (layer, None))
        held = () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if any(tensor is None for tensor in held):
            raise UsageError(
                f"`model` must have batch norms with scale, shift and running statistics, got {shown(norm)}: create it "
                "with affine=True and track_running_stats=True"
            )
        others = {id(own) for module in model.modules() if module is not norm for own in module._parameters.values()}
        if any(id(tensor) in others for tensor in held):
            raise UsageError(
                f"`model` must have batch norms of their own, got {norm_name}, which shares a parameter: untie them"
            )
        kept = [name for name in skipped if name.startswith((f"{layer}.", f"{norm_name}."))]
        if kept:
            raise UsageError(
                f"`skip` must leave a layer and the batch norm after it together, got {kept[0]} without {layer}: each "
                "checkpoint's norm moves into its expert"
            )


def _layer_tensors(tensors: Mapping[str, Tensor], layer: str, norm: str | None) -> dict[str, Tensor | None]:
    """Return one checkpoint's tensors for a layer and the norm after it, in fp64."""
    wanted = {"kernel": f"{layer}.weight", "bias": f"{layer}.bias"}
    if norm is not None:
        wanted |= {leaf: f"{norm}.{leaf}" for leaf in ("weight", "running_mean", "running_var")} | {
            "beta": f"{norm}.bias"
        }
    return {key: tensors[name].double() if name in tensors else None for key, name in wanted.items()}


@torch.no_grad()
def _set_layer_(experts: DenseExperts, norm: Any, own: list[dict[str, Any]], start: Tensor) -> bool:
    """Set the experts and the norm after it, in place; return whether a shift was lost."""
    total = start.sum()
    share = start / total  # of each checkpoint in the average the network starts with
    spec = experts.spec
    kernels = torch.stack([each["kernel"].reshape(spec.shape) for each in own]) / total
    biases = torch.stack([_or(each["bias"], 0.0, spec.out_channels) for each in own])  # [E, O]
    if norm is None:
        experts.weight.copy_(kernels)
        if experts.bias is not None:
            experts.bias.copy_(biases / total)
        return False
    means = torch.stack([each["running_mean"] for each in own])
    variances = torch.stack([each["running_var"] for each in own])
    scales = torch.stack([each["weight"] for each in own]) / (variances + norm.eps).sqrt()
    shifts = torch.stack([each["beta"] for each in own]) + scales * (biases - means)
    common = (share @ scales.square()).sqrt()  # 0 only where every scale is
    ratios = torch.where(common > 0, scales / common, 0.0)
    variance = share @ (ratios.square() * variances)
    norm.running_mean.copy_(share @ (ratios * (means - biases)))
    norm.running_var.copy_(variance)
    norm.weight.copy_(common * (variance + norm.eps).sqrt())
    norm.bias.copy_(share @ shifts + common * (share @ (ratios * (means - biases))))
    experts.weight.copy_(kernels * along_outputs(ratios, kernels, spec.groups, spec.transposed))
    apart = shifts - share @ shifts
    if experts.bias is not None:
        experts.bias.copy_(torch.where(common > 0, apart / common, 0.0) / total)
        return False
    return bool(apart.abs().max() > 1e-6 * shifts.abs().max())  # more than rounding


def _or(tensor: Tensor | None, value: float, size: int) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64) if tensor is None else tensor
