"""Networks by name, with the paper's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from condconv.convert import Scope
from condconv.errors import UsageError, shown
from condconv.models.names import Name, parse_name
from condconv.models.paper import ROWS, PaperRow
from condconv.models.pretrained import check_weights, describe_weights, load_weights_
from condconv.models.recipe import Recipe
from condconv.nn.experts import ExpertsOption
from condconv.ops.scalars import number

_IMAGENET_CLASSES = 1000
_SHARES = ("drop_rate", "drop_path_rate", "bn_momentum")  # options that timm takes as they are, until the first image


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a network.

    Attributes:
        name: Name of the network.
        family: Family of the network.
        size: Width in percent, or the family's name of the size.
        num_experts: E of its conditional layers; `None` for a static network.
        timm_name: timm's name of its static network; `None` if timm has none.
        placement: Source for which layers are conditional.
        output_strides: Values that the option `output_stride` may have.
        routing: Routing of its form with experts, unless another is asked for.
        experts: Experts of that form, unless others are asked for.
        paper: The paper's figures; `None` if it prints none.
    """

    name: str
    family: str
    size: str
    num_experts: int | None
    timm_name: str | None
    placement: str
    output_strides: tuple[int, ...]
    routing: str
    experts: str
    paper: PaperRow | None


def get_model_info(name: str) -> ModelInfo:
    """Return the facts about a network.

    Raises:
        UsageError: There is no network of this name.
        MissingExtraError: timm is not installed.
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
        routing=family.routing,
        experts=family.experts,
        paper=ROWS.get(name),
    )


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    pretrained: bool = False,
    features_only: bool = False,
    method: str | None = None,
    routing: str | Callable[..., nn.Module] | None = None,
    experts: ExpertsOption | None = None,
    scope: str | Scope = "block",
    first_layer: int | None = None,
    conditional_head: bool | None = None,
    conditional_classifier: bool | None = None,
    init: str | None = None,
    expert_spread: float = 0.5,
    **options: Any,
) -> nn.Module:
    """Return a network by name: timm's, whose later layers get experts if the name has them.

    Args:
        name: `mobilenet_v1_050` is static, `mobilenet_v1_cc_050_8e` its form with 8 experts; any number of experts,
            and any width in percent where the size is a width.
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the input.
        pretrained: Start from timm's ImageNet weights (downloaded by timm): those of the static network, whose output
            the conditional one then has until it is trained further, or the authors' conditional ones of
            `tf_efficientnet_cc_*`. timm's arguments `pretrained_cfg`, `pretrained_cfg_overlay` and `cache_dir` choose
            which, and where they are stored. For other files see `condconv.load_pretrained`.
        features_only: Return a network that returns a list of feature maps, as timm's do; takes timm's `out_indices`,
            and its `feature_cls` except `"fx"`.
        method: A method by name, instead of `routing` and `experts`; see `condconv.nn.METHODS`. The name has its number
            of kernels, such as `mobilenet_v2_cc_100_1e` for one. Layers route one by one in all methods but "condconv",
            "deltas" and "shared", unless `scope` is another than "block".
        routing: Routing of conditional networks; see `condconv.convert_`. `None` for the family's
            (`ModelInfo.routing`), "sigmoid" as in the paper or "sigmoid(standardize=True)" for small images.
        experts: Experts of conditional networks; see `condconv.convert_`. `None` for the family's
            (`ModelInfo.experts`), "dense" as in the paper or "deltas" for small images.
        scope: Scope of conditional networks; the paper's is one routing per block.
        first_layer: First layer with experts, counted as in the paper: 1 is the stem, each block is one layer, a 1x1
            convolution after the blocks is one, and the classifier is the last. `None` for the paper's choice;
            MobileNetV2's is ours, since the paper does not state it.
        conditional_head: Whether the 1x1 convolution after the blocks has experts; `None` as for `first_layer`.
        conditional_classifier: Whether the classifier has experts; `None` as for `first_layer`.
        init: Start of conditional networks: `"random"` draws each expert separately, as the paper does; `"same_output"`
            starts as the static network of the same seed, with experts that differ a little, as `pretrained` does.
            `None` for `"random"`, and for `"same_output"` in networks for small images.
        expert_spread: With `init="same_output"`, how far experts are apart, relative to the spread of the kernel's
            entries; it cancels in the mixture that all images start with.
        **options: Options of timm's network: `drop_rate`, `drop_path_rate`, `bn_eps` and so on. `output_stride` is the
            size of the image over that of the last feature map, 32 as in the paper or less
            (`ModelInfo.output_strides`): timm then replaces late halvings by dilation; MobileNetV1 omits its earliest
            halvings instead, which suits small images and costs more. Networks for small images have the option `se`,
            squeeze-and-excitation in each block, with this share of the channels as hidden units.

    Returns:
        The network, in training mode. A static network and its conditional form made with the same seed share the
        initial parameters of all layers that are static in both.

    Raises:
        UsageError: There is no network of this name, an argument is out of range, of a wrong type or not for this
            network, or weights do not fit.
        TypeError: The network does not have an option.
        MissingExtraError: timm is not installed.

    Source:
        CondConv, section 4. Deviations: MobileNetV1 and V2, MnasNet, ResNet and `efficientnet_*` pad as torch, not as
        TensorFlow (SAME). timm rounds channels to multiples of 8, at least 8; TF-Slim truncates MobileNetV1's to an
        int, at least 8, which is the same at the paper's widths. Classifiers for fewer than 1000 classes start as wide
        as one for 1000; timm's and the authors' start wider for fewer classes.

    Example:
        >>> model = create_model("mobilenet_v1_cc_025_4e", num_classes=10, output_stride=8)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    parsed = parse_name(name)
    placement = (first_layer, conditional_head, conditional_classifier)
    recipe = Recipe(method, routing, experts, scope, *placement, init, expert_spread)
    _check_sizes(parsed, num_classes, in_chans, pretrained, features_only, options)
    recipe.check(parsed)
    recipe = recipe.resolved(parsed)
    places = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    given, overlay, cache_dir = (options.pop(place, None) for place in places)
    cfg = describe_weights(parsed, given, overlay)
    if pretrained:
        check_weights(parsed, cfg, recipe)
    last: dict[str, Any] = {"features_only": True} if features_only else {"num_classes": num_classes}
    model = parsed.family.build(parsed.size, in_chans=in_chans, **last, **options)
    if parsed.family.classes_widen and not features_only and 0 < num_classes < _IMAGENET_CLASSES:
        _narrow_classifier_(model.get_submodule(parsed.family.classifier), num_classes)
    network = parsed.family.network(model)
    start = network.state_dict()
    if parsed.num_experts is not None:
        _check_not_traced(network, options)
        recipe.convert_(network, parsed, in_chans)
    if pretrained:
        load_weights_(network, parsed, cfg, start, expert_spread, cache_dir)
    model.pretrained_cfg = model.default_cfg = cfg.to_dict()
    return model


def _check_not_traced(network: nn.Module, options: Mapping[str, Any]) -> None:
    if isinstance(network, torch.fx.GraphModule):
        raise UsageError(
            f"`feature_cls` must not trace a conditional network, got {shown(options['feature_cls'])}: the trace holds "
            'the static layers; take "hook" or "getter"'
        )


def _narrow_classifier_(classifier: nn.Module, num_classes: int) -> None:
    """Let a classifier start as wide as one for ImageNet, in place.

    It has no norm after it. Between ±1 / sqrt(10) the first loss is 2.9 to 5, while equal guesses have 2.3, and with
    experts, whose sum is wider still, a network may not recover (`docs/notebook/early-trials.md`).
    """
    with torch.no_grad():
        classifier.weight.mul_((num_classes / _IMAGENET_CLASSES) ** 0.5)  # type: ignore[operator]


def _check_sizes(
    name: Name, num_classes: int, in_chans: int, pretrained: bool, features_only: bool, options: Mapping[str, Any]
) -> None:
    for argument, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if type(value) is not int or value < least:
            raise UsageError(f"`{argument}` must be a whole number of at least {least}, got {shown(value)}: give one")
    for argument, value in (("pretrained", pretrained), ("features_only", features_only)):
        if not isinstance(value, bool):
            raise UsageError(f"`{argument}` must be True or False, got {shown(value)}: leave it out for False")
    strides = name.family.output_strides
    if options.get("output_stride", strides[-1]) not in strides:
        known = ", ".join(map(str, strides))
        raise UsageError(
            f"`output_stride` must be one of {known} for {str(name)!r}, got "
            f"{shown(options['output_stride'])}: take one of these"
        )
    _check_numbers(options)
    if "checkpoint_path" in options:
        # timm would load it into the static base, whose conditional layers are initialised again after that.
        raise UsageError(
            f"`checkpoint_path` must not be given for {str(name)!r}, got {shown(options['checkpoint_path'])}: create "
            "the network, then call condconv.load_pretrained, which also takes weights of the static network"
        )


def _check_numbers(options: Mapping[str, Any]) -> None:
    given = {name: value for name, value in options.items() if value is not None}  # None is timm's default
    for name in _SHARES:
        if name in given:
            number(name, given[name], "from 0 to 1", lambda share: 0 <= share <= 1, "leave it out")
    if "bn_eps" in given:
        number("bn_eps", given["bn_eps"], "above 0", lambda eps: 0 < eps < math.inf, "leave it out")
