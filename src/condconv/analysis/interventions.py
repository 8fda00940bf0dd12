"""What input-dependence is worth: the network's accuracy with changed routing weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condconv.analysis.outputs import outputs
from condconv.analysis.recorder import layers_by_routing
from condconv.analysis.records import Intervention
from condconv.analysis.report import RoutingReport
from condconv.errors import UsageError, check_type, few, shown

Change = Callable[[str, Tensor], Tensor]
"""From the name of a routing function and its weights `[B, E]` to the weights to use instead."""


@contextmanager
def changed_routing(network: nn.Module, change: Change, routings: Iterable[str] | None = None) -> Iterator[None]:
    """Change what routing functions return, through hooks that exist only inside the `with` block.

    All compiled code of the process runs eagerly inside it, since compiled code does not call new hooks.

    Args:
        network: Network with conditional layers.
        change: Takes the name of the routing function and its weights `[B, E]`, and returns new ones of that shape.
        routings: Names of the routing functions; None for all.

    Raises:
        UsageError: The network has no conditional layer, or no routing function of that name.

    Example:
        >>> network = torch.nn.Sequential(condconv.CondConv2d(3, 8, 3, num_experts=4))
        >>> with changed_routing(network, lambda name, weights: keep_top(weights, 1)):
        ...     output = network(torch.randn(2, 3, 8, 8))
    """
    check_type("change", change, Callable, "be a function", "it gets a name and weights [B, E], and returns weights")
    with _changed(_routing_modules(network, routings), change):
        yield


def _routing_modules(network: nn.Module, routings: Iterable[str] | None) -> dict[str, nn.Module]:
    known = layers_by_routing(network)
    names = known if routings is None else _names_among(known, routings)
    return {name: network.get_submodule(name) for name in names}


@contextmanager
def _changed(modules: Mapping[str, nn.Module], change: Change) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda module, args, out, name=name: change(name, out))
        for name, module in modules.items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def keep_top(weights: Tensor, k: int) -> Tensor:
    """Keep each example's k largest weights, scaled to the sum of all its weights; the others become 0.

    The sum stays because only the choice of experts is tested: sigmoid weights of eight experts sum to about four, and
    a kernel of a fourth of the usual size would fail for any expert.

    Args:
        weights: `[B, E]`.
        k: Number of weights to keep.

    Example:
        >>> keep_top(torch.tensor([[0.5, 0.25, 0.25]]), 1)
        tensor([[1., 0., 0.]])
    """
    check_type("weights", weights, Tensor, "be a tensor [B, E]", "give what a routing function returns")
    if weights.dim() != 2:
        raise UsageError(f"`weights` must have shape [B, E], got {tuple(weights.shape)}: add the batch's dimension")
    if type(k) is not int or not 1 <= k <= weights.shape[1]:
        raise UsageError(f"`k` must be a whole number from 1 to E = {weights.shape[1]}, got {shown(k)}: give one")
    top = weights.topk(k, dim=1)
    kept = torch.zeros_like(weights).scatter(1, top.indices, top.values)
    total = kept.sum(1, keepdim=True)
    return torch.where(total != 0, kept * (weights.sum(1, keepdim=True) / total), kept)


@dataclass
class _Variant:
    """One intervention and its counts so far; without a change the network runs as it is."""

    name: str
    routings: tuple[str, ...]
    change: Change | None
    most_images: int | None = None
    least_batch: int = 1
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("images", "agree", "right", "gained", "lost"), 0)
    )

    def add(self, before: Tensor, now: Tensor, targets: Tensor | None) -> None:
        """Count predictions `[B]` before and now, and whether they are the classes `[B]`."""
        sums: dict[str, Any] = {"images": torch.tensor(len(now)), "agree": (now == before).sum()}
        if targets is not None:
            was, is_now = before == targets, now == targets
            sums |= {"right": is_now.sum(), "gained": (is_now & ~was).sum(), "lost": (was & ~is_now).sum()}
        for name, value in sums.items():
            self.counts[name] += int(value)

    def result(self, labelled: bool) -> Intervention:
        """Return the counts; those that need classes are None without them."""
        kept = self.counts if labelled else {name: self.counts[name] for name in ("images", "agree")}
        return Intervention(self.name, self.routings, **kept)


def measure_interventions(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    report: RoutingReport,
    *,
    layer_images: int = 10_000,
) -> tuple[Intervention, ...]:
    """Measure what the routing is worth, in one reading of the data; the network runs once for each intervention.

    - `"learned"`: nothing is changed.
    - `"mean"`: every image gets the mean weights of the report, so the network is static.
    - `"shuffled"`: every image gets the weights of the previous image in its batch (the first, those of the last).
      Batches of one image are left out, and if there are no others, the intervention.
    - `"top-1"`, `"top-2"`, `"top-4"`: only the largest weights are kept (`keep_top`), as far as there are more experts.
    - `"mean"` again for one routing function at a time, on the first `layer_images` images.

    Args:
        network: The network that was recorded, in evaluation mode.
        batches: Images `[B, C, S, S]` and classes `[B]`, in an order that mixes the classes: with images sorted by
            class, shuffling would pass on the weights of the same class. Negative classes (images that could not be
            read) do not count. Without class names in the report only the sign of the classes matters.
        report: The recording of the network.
        layer_images: Maximum number of images for the interventions on one routing function.

    Returns:
        The interventions on all routing functions, then those on each.

    Raises:
        UsageError: There is no readable image, or the network is not a classifier.
    """
    _check(network, report)
    if type(layer_images) is not int or layer_images < 0:
        raise UsageError(f"`layer_images` must be a whole number of 0 or more, got {shown(layer_images)}: 0 skips that")
    means = {record.name: record.mean_vector for record in report.routings}
    every = tuple(means)
    static = _constant(means)
    experts = {record.name: record.num_experts for record in report.routings}
    variants = [
        _Variant("learned", (), None),
        _Variant("mean", (), static),
        _Variant("shuffled", (), lambda name, weights: weights.roll(1, 0), least_batch=2),
        *(_Variant(f"top-{k}", (), _top(k, experts)) for k in (1, 2, 4) if k < max(experts.values())),
        *(_Variant("mean", (name,), static, layer_images) for name in every),
    ]
    return _measure(network, batches, variants, every, labelled=report.class_names is not None)


def measure_static(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    report: RoutingReport,
    routings: Iterable[str],
) -> Intervention:
    """Measure the network with the mean weights in the named routing functions together.

    Args:
        network: As in `measure_interventions`.
        batches: As in `measure_interventions`.
        report: As in `measure_interventions`.
        routings: Names of routing functions.

    Raises:
        UsageError: As in `measure_interventions`; or there is no routing function of that name.
    """
    _check(network, report)
    names = _names_among([record.name for record in report.routings], routings)
    means = {name: report.routing(name).mean_vector for name in names}
    variant = _Variant("mean", tuple(means), _constant(means))
    return _measure(network, batches, [variant], (), labelled=report.class_names is not None)[0]


def _names_among(known: Collection[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the given names of routing functions, if all are known."""
    rule, remedy = "name routing functions", f"there are {few(known, most=8)}"
    check_type("routings", names, Iterable, rule, remedy)
    given = tuple(names)
    for name in given:
        if name not in known:
            raise UsageError(f"`routings` must {rule}, got {shown(name)}: {remedy}")
    return given


def _check(network: Any, report: Any) -> None:
    check_type("network", network, nn.Module, "be a torch.nn.Module", "give the network that was recorded")
    check_type("report", report, RoutingReport, "be a RoutingReport", "give what RoutingRecorder.report() returns")


def _predicted(logits: Tensor) -> Tensor:
    """Return the classes `[B]` that a classifier's outputs `[B, classes]` predict.

    Raises:
        UsageError: They have another shape.
    """
    if logits.dim() != 2:
        raise UsageError(
            f"`network` must give one number per class, [B, classes], got {list(logits.shape)}: give a classifier"
        )
    return logits.argmax(1)


def _constant(means: Mapping[str, Tensor]) -> Change:
    return lambda name, weights: means[name].to(weights).expand_as(weights)


def _top(k: int, num_experts: Mapping[str, int]) -> Change:
    """Return a change that keeps the k largest weights of experts, and all other parts of the routing vector."""

    def change(name: str, weights: Tensor) -> Tensor:
        experts = num_experts[name]
        if experts <= k:
            return weights
        return torch.cat([keep_top(weights[:, :experts], k), weights[:, experts:]], 1)

    return change


@torch.inference_mode()
def _measure(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    variants: list[_Variant],
    every: tuple[str, ...],
    *,
    labelled: bool,
) -> tuple[Intervention, ...]:
    # Found once, since finding them walks through the network.
    modules = [_routing_modules(network, variant.routings or every) for variant in variants]
    for images, targets, output in outputs(network, batches):
        readable = targets >= 0
        before, images, targets = _predicted(output)[readable], images[readable], targets[readable]
        for variant, changed in zip(variants, modules, strict=True):
            left = len(images)
            if variant.most_images is not None:
                left = min(left, variant.most_images - variant.counts["images"])
            if left < variant.least_batch:
                continue
            now = before[:left]
            if variant.change is not None:
                with _changed(changed, variant.change):
                    now = _predicted(network(images[:left]))
            variant.add(before[:left], now, targets[:left] if labelled else None)
    if all(variant.counts["images"] == 0 for variant in variants):
        raise UsageError("`batches` must hold a readable image, got none: check the files")
    return tuple(variant.result(labelled) for variant in variants if variant.counts["images"])
