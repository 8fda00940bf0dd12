"""How a static network becomes conditional: which layers get experts, and how they are routed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from condconv.convert import Scope, convert_
from condconv.convert.exchange import NO_VALUES
from condconv.errors import UsageError, shown
from condconv.models.families import Family
from condconv.models.names import Name
from condconv.nn.conditional import PAPER
from condconv.nn.experts import ExpertsOption, resolve_experts
from condconv.nn.methods import parse_method, resolve_method

_EXAMPLE_SIZE = 64


@dataclass(frozen=True)
class Recipe:
    """The options of a conditional network; the attributes are arguments of `create_model`, as documented there."""

    method: str | None = None
    routing: str | Callable[..., nn.Module] | None = None
    experts: ExpertsOption | None = None
    scope: str | Scope = "block"
    first_layer: int | None = None
    conditional_head: bool | None = None
    conditional_classifier: bool | None = None
    init: str | None = None
    expert_spread: float = 0.5

    def check(self, name: Name) -> None:
        """Check everything that can be checked before the network exists.

        Raises:
            UsageError: An argument is of a wrong type, or given for a static network.
        """
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if name.num_experts is None and given:
            twin = dataclasses.replace(name, num_experts=8)
            raise UsageError(
                f"`{given[0]}` must not be given for {str(name)!r}, which has no experts, got "
                f"{shown(getattr(self, given[0]))}: leave it out, or take a conditional network such as {twin}"
            )
        if not isinstance(self.scope, (str, Scope)):
            raise UsageError(
                f'`scope` must be "layer", "block", "network" or a Scope, got {shown(self.scope)}: "block" is usual'
            )
        if self.experts is not None:
            resolve_experts(self.experts)
        if self.routing == "external":
            raise UsageError("`routing` must take its weights from the input, got 'external': choose one that does")
        if self.first_layer is not None and type(self.first_layer) is not int:
            raise UsageError(
                f"`first_layer` must be a whole number or None, got {shown(self.first_layer)}: None is as in the paper"
            )
        for argument in ("conditional_head", "conditional_classifier"):
            value = getattr(self, argument)
            if not isinstance(value, (bool, type(None))):
                raise UsageError(
                    f"`{argument}` must be True, False or None, got {shown(value)}: None is as in the paper"
                )
        if self.init not in (None, "same_output", "random"):
            raise UsageError(
                f'`init` must be "same_output", "random" or None, got {shown(self.init)}: leave it out to train from '
                "scratch"
            )
        if "expert_spread" in given and (self.init or name.family.init) != "same_output":
            raise UsageError(
                f"`expert_spread` must be given with init='same_output' only, got {shown(self.expert_spread)} "
                f"with {shown(self.init)}: leave it out, random experts differ anyway"
            )

    def resolved(self, name: Name) -> Recipe:
        """Return the recipe with the routing, the experts, the scope and the start of its method; itself without one.

        Raises:
            UsageError: There is no such method, or it does not go with the name or with other arguments.
        """
        if self.method is None:
            return self
        _, routing, experts = resolve_method(self.method, name.num_experts, self.routing, self.experts, PAPER)
        _, method, _ = parse_method(self.method)
        return dataclasses.replace(
            self,
            method=None,
            routing=routing,
            experts=experts,
            scope=method.scope if self.scope == "block" else self.scope,
            init=method.init if self.init is None else self.init,
        )

    def convert_(self, model: nn.Module, name: Name, in_chans: int) -> None:
        """Give a static network experts, in place; convolutions of squeeze-and-excitation stay static.

        Raises:
            UsageError: The network lacks a layer that should have experts, or a layer cannot have any, or a block
                cannot route.
        """
        layers = name.family.layers(model)
        chosen = self._choose(name.family, layers)
        blocks = {layer for layer in layers if re.fullmatch(name.family.blocks, layer)}
        whole = tuple(f"{layer}." for layer in chosen)
        weight = next(model.parameters())
        # Drawn apart, so that the network's own numbers stay those of the seed.
        noise = torch.Generator().manual_seed(0)
        example = torch.randn(1, in_chans, _EXAMPLE_SIZE, _EXAMPLE_SIZE, generator=noise, device="cpu").to(weight)
        experts = name.family.experts if self.experts is None else self.experts
        report = convert_(
            model,
            int(name.num_experts or 0),
            layers=lambda layer, _: f"{layer}.".startswith(whole) and ".se." not in layer,
            routing=name.family.routing if self.routing is None else self.routing,
            experts=experts,
            scope=self._scope(chosen, blocks),
            example_input=example,
            init=self.init or name.family.init,
            expert_spread=self.expert_spread,
        )
        refused = [f"{layer!r} cannot have experts, {reason}" for layer, reason in report.refused.items()]
        if getattr(resolve_experts(experts)[0], "for_some_layers", False):
            refused = []
        for problem in (*refused, *(note for note in report.notes if note != NO_VALUES)):
            raise UsageError(
                f"`name` must be a network that can have these options, got {str(name)!r} ({problem}): choose "
                "another placement"
            )

    def _choose(self, family: Family, layers: Sequence[str]) -> list[str]:
        """Return the names of the layers with experts."""
        first = self._first(family, layers)
        left_out = set()
        for argument in ("head", "classifier"):
            layer, asked = getattr(family, argument), getattr(self, f"conditional_{argument}")
            if layer not in layers and (asked or (layer is None and asked is not None)):
                raise UsageError(
                    f"`conditional_{argument}` must be None for a network without a {argument}, got {shown(asked)}: "
                    "leave it out"
                )
            if not (getattr(family, f"conditional_{argument}") if asked is None else asked):
                left_out.add(layer)
        chosen = [layer for layer in layers[first:] if layer not in left_out]
        if not chosen:
            raise UsageError(
                f"`first_layer` must leave a layer with experts, got {self.first_layer!r} with only "
                f"{', '.join(layers[first:])} from there: take an earlier one, or make the head or the classifier "
                "conditional"
            )
        return chosen

    def _first(self, family: Family, layers: Sequence[str]) -> int:
        """Return the position of the first layer that may have experts."""
        if self.first_layer is None:
            if family.first_conditional in layers:
                return layers.index(family.first_conditional)
            raise UsageError(
                f"`out_indices` must reach a layer with experts, got a network that ends with {layers[-1]!r}: "
                f"they start with {family.first_conditional!r}, ask for a later map or give an earlier first_layer"
            )
        if not 1 <= self.first_layer <= len(layers):
            raise UsageError(
                f"`first_layer` must lie between 1 and {len(layers)}, got {shown(self.first_layer)}: layers are "
                "counted from 1, the stem"
            )
        return self.first_layer - 1

    def _scope(self, chosen: Sequence[str], blocks: set[str]) -> Scope:
        scope = Scope.parse(self.scope) if isinstance(self.scope, str) else self.scope
        if scope.kind == "network" and scope.blocks is None and chosen[0] not in blocks:
            raise UsageError(
                f'`first_layer` must be a block with scope="network", whose one routing takes that block\'s input, got '
                f"{chosen[0]!r}: take one of the layers from {min(blocks)!r} on"
            )
        return scope
