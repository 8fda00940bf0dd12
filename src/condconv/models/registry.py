"""Networks by name, with what the paper says of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from condconv.convert import Scope, convert_, select
from condconv.errors import require_extra
from condconv.models.families import Family
from condconv.models.names import Name, parse_name
from condconv.models.paper import ROWS, PaperRow
from condconv.models.pretrained import start_from

_EXAMPLE_SIZE = 64


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a network.

    Attributes:
        name: Of the network.
        family: Of networks it belongs to.
        size: Width in percent, or what the family calls its sizes.
        num_experts: E of its conditional layers; `None` for a static network.
        timm_name: What timm calls its static network; `None` where timm has none.
        placement: Source of which layers are conditional.
        output_strides: Values that the option `output_stride` may have.
        paper: What the paper prints of it; `None` where it prints nothing.
    """

    name: str
    family: str
    size: str
    num_experts: int | None
    timm_name: str | None
    placement: str
    output_strides: tuple[int, ...]
    paper: PaperRow | None


def get_model_info(name: str) -> ModelInfo:
    """Return what is known of a network.

    Raises:
        ValueError: No network can be made of the name.
    """
    parsed = parse_name(name)
    family = parsed.family
    return ModelInfo(
        name=name,
        family=family.name,
        size=parsed.size,
        num_experts=parsed.num_experts,
        timm_name=family.timm_name(parsed.size),
        placement=family.source,
        output_strides=family.output_strides,
        paper=ROWS.get(name),
    )


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    pretrained: bool = False,
    features_only: bool = False,
    routing: str | Callable[..., nn.Module] = "sigmoid",
    scope: str | Scope = "block",
    first_layer: int | None = None,
    conditional_head: bool | None = None,
    conditional_classifier: bool | None = None,
    init: str | None = None,
    **options: Any,
) -> nn.Module:
    """Return a network by name.

    Args:
        name: `mobilenet_v1_050` is static, `mobilenet_v1_cc_050_8e` its form with 8 experts; any number of experts,
            and any width in percent where the size is a width.
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the input.
        pretrained: Start from timm's ImageNet weights of the static network (downloaded by timm): the conditional
            network then computes what that one does until it is trained further. For weights of your own, or the
            authors', see `condconv.load_pretrained`.
        features_only: Return a network that gives a list of feature maps, as timm's do; takes timm's `out_indices`.
        routing: Of conditional networks; see `condconv.convert_`.
        scope: Of conditional networks; the paper's is one routing a block.
        first_layer: First layer with experts, as the paper counts: 1 is the stem, each block is one layer, so is a 1x1
            convolution after the blocks, and the classifier is the last. `None` for the paper's choice.
        conditional_head: Whether the 1x1 convolution after the blocks has experts; `None` for the paper's choice.
        conditional_classifier: Whether the classifier has experts; `None` for the paper's choice.
        init: Of conditional networks: `"independent"` draws each expert on its own, as the paper does; `"preserve"`
            starts as the static network of the same seed, with experts that differ a little. `None` for the first, or
            the second with `pretrained`.
        **options: Of the static network: `drop_rate`, `output_stride` and what else `condconv.models.MobileNetV1` or
            timm's network takes.

    Returns:
        The network, in training mode. A static network and its conditional form made with the same seed share the
        initial parameters of all layers that are static in both.

    Raises:
        ValueError: No network can be made of the name, or an option is out of range.
        TypeError: An option the network does not have.
        MissingExtraError: timm is not installed; all networks but MobileNetV1 are based on its.

    Example:
        >>> model = create_model("mobilenet_v1_cc_025_4e", num_classes=10, output_stride=8)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    parsed = parse_name(name)
    family = parsed.family
    if parsed.num_experts is not None and "checkpoint_path" in options:
        # timm would load it into the static base, whose conditional layers are drawn anew after that.
        raise ValueError(
            f"checkpoint_path must not be given for {name!r}: create it, then call condconv.load_pretrained, which "
            "also takes weights of the static network"
        )
    if pretrained and init == "independent":
        raise ValueError(
            'init must not be "independent" with pretrained: the weights of conditional layers would be lost'
        )
    if num_classes < 0 or in_chans < 1:
        raise ValueError(f"num_classes and in_chans must be counts, got {num_classes!r} and {in_chans!r}")
    ours = family.timm_name(parsed.size) is None
    out_indices = options.pop("out_indices", None) if features_only and ours else None
    if features_only and not ours:
        options["features_only"] = True
    else:
        options["num_classes"] = 0 if features_only else num_classes
    start, options = start_from(parsed, pretrained, options)
    model = family.build(parsed.size, in_chans=in_chans, **options)
    if parsed.num_experts is not None:
        layers = family.layers(model)
        chosen = _conditional_layers(family, layers, first_layer, conditional_head, conditional_classifier)
        _convert_(model, parsed, chosen, layers, in_chans, routing, scope, init or start.init)
    start.load_(model, in_chans)
    if features_only and ours:
        getter = require_extra("timm.models._features", "models").FeatureGetterNet
        maps: Any = model.feature_info
        # All of them unless some are asked for, as timm's other networks do.
        model = getter(model, out_indices=tuple(range(len(maps))) if out_indices is None else out_indices)
    return model


def _conditional_layers(
    family: Family, layers: Sequence[str], first_layer: int | None, head: bool | None, classifier: bool | None
) -> list[str]:
    """Return the names of the layers with experts."""
    if first_layer is None:
        if family.first_block not in layers:
            raise ValueError(
                f"out_indices must reach a layer with experts: this network ends with {layers[-1]!r}, "
                f"they start with {family.first_block!r}"
            )
        first = layers.index(family.first_block)
    elif 1 <= first_layer <= len(layers):
        first = first_layer - 1
    else:
        raise ValueError(f"first_layer must lie between 1 and {len(layers)}, got {first_layer!r}")
    left_out = set()
    if not (family.conditional_head if head is None else head):
        left_out.add(family.head)
    if not (family.conditional_classifier if classifier is None else classifier):
        left_out.add(family.classifier)
    chosen = [name for name in layers[first:] if name not in left_out]
    if not chosen:
        raise ValueError(
            f"first_layer must leave a layer with experts, got {first_layer!r} with only {', '.join(layers[first:])} "
            "after it: take an earlier one, or make the head or the classifier conditional"
        )
    return chosen


def _convert_(
    model: nn.Module,
    name: Name,
    chosen: Sequence[str],
    layers: Sequence[str],
    in_chans: int,
    routing: str | Callable[..., nn.Module],
    scope: str | Scope,
    init: str,
) -> None:
    """Give the chosen layers experts; convolutions of squeeze-and-excitation inside a block stay static."""
    blocks = {layer for layer in layers if re.fullmatch(name.family.blocks, layer)}
    scope = Scope.parse(scope) if isinstance(scope, str) else scope
    if scope.is_block is None and scope.kind != "layer":
        scope = dataclasses.replace(scope, is_block=lambda module_name, module: module_name in blocks)
    patterns = [f"{layer}.*" if layer in blocks else layer for layer in chosen]
    convert_(
        model,
        int(name.num_experts or 0),
        where=select.name(*patterns) & ~select.name("*.se.*"),
        routing=routing,
        scope=scope,
        classifier=name.family.classifier in chosen,
        example_input=torch.zeros(1, in_chans, _EXAMPLE_SIZE, _EXAMPLE_SIZE),
        init=init,
    )
