"""Which of the selected layers are converted, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from condconv.convert import refusals
from condconv.convert.blocks import Blocks, find_candidates
from condconv.convert.select import Candidate, Selector, convs, runs_in_eval, selector_of, single_pixel
from condconv.errors import UsageError, few, shown
from condconv.nn import ConditionalLayer
from condconv.nn.choice import LayerChoice
from condconv.nn.experts import ExpertsOption

_USUAL = convs() & ~single_pixel() & runs_in_eval()


def choose_layers(
    blocks: Blocks,
    layers: Selector | LayerChoice | None,
    skip: Selector | LayerChoice | None,
    classifier: bool,
    experts: ExpertsOption,
    share: bool,
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the layers to convert in the order in which they run, and the selected ones that cannot be.

    Args:
        blocks: Of the model.
        layers: As in `convert_`.
        skip: As in `convert_`.
        classifier: As in `convert_`.
        experts: As in `convert_`.
        share: Whether layers share a routing.

    Returns:
        The layers, and the reasons by name.

    Raises:
        UsageError: Nothing is selected, nothing of it can be converted, or there is no classifier.
    """
    candidates = find_candidates(blocks)
    selector = _USUAL if layers is None else selector_of(layers)
    if skip is not None:
        selector &= ~selector_of(skip, "skip")
    selected = _select(candidates, selector, _classifier(candidates) if classifier else None)
    if not selected:
        raise UsageError(_nothing(blocks.model, candidates, layers, selector))
    reasons = [refusals.why_not_shared(blocks.model), refusals.why_not_traced(blocks.model)]
    reasons += [refusals.in_several_blocks(blocks)] if share else []
    refused = {}
    for candidate in selected:
        name, module = candidate.name, candidate.module
        reason = refusals.why_not_layer(blocks.model, name, module, experts)
        reason = reason or refusals.why_not_called(blocks.watched, module)
        reason = reason or next((each[id(module)] for each in reasons if id(module) in each), None)
        if reason is not None:
            refused[name] = reason
    chosen = [candidate for candidate in selected if candidate.name not in refused]
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:4])
        raise UsageError(
            f"`layers` must select a layer that can be converted, got {shown(selector, 300)} with only {why}: name "
            "others"
        )
    return chosen, refused


def _classifier(candidates: Sequence[Candidate]) -> Candidate:
    linears = [each for each in candidates if isinstance(each.module, nn.Linear) and each.runs]
    if not linears:
        raise UsageError(
            "`classifier` must be False for a model without a linear layer that runs, got True: leave it out"
        )
    return linears[-1]


def _select(candidates: Sequence[Candidate], selector: Selector, classifier: Candidate | None) -> list[Candidate]:
    """Return the selected candidates; a linear layer only if it is the classifier or named on purpose."""
    by_name = {each.name: each for each in candidates}
    chosen, linear = selector.among(by_name), selector.linear(by_name)
    return [
        each
        for each in candidates
        if each is classifier
        or (each.name in chosen and (not isinstance(each.module, nn.Linear) or each.name in linear))
    ]


def _nothing(model: Any, candidates: Sequence[Candidate], layers: Any, selector: Selector) -> str:
    if layers is None and any(isinstance(each, ConditionalLayer) for each in model.modules()):
        return "`model` must have layers left to convert, got only conditional convolutions: it is done already"
    linear = selector.among({each.name: each for each in candidates})
    if linear:
        names = few(sorted(linear))
        return f"`layers` must name linear layers in full, got {shown(selector, 300)}: give {names}, or a function"
    names = few((each.name for each in candidates), most=8)
    there = f"there are {names}" if candidates else "the model has none"
    return f"`layers` must select a layer, got {shown(selector, 300)}, which selects none: {there}"
