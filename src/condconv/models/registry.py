"""Networks by name, with what the paper says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from condconv.convert import Scope, convert_, select
from condconv.models.mobilenet_v1 import MobileNetV1


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a network.

    Attributes:
        name: Of the network.
        family: Of networks it belongs to.
        width: Multiplier of the channels.
        num_experts: E of its conditional layers; `None` for a static network.
        paper_madds: Multiply-adds the paper prints, with 1000 classes at 224 px; `None` where it prints none.
        paper_top1: ImageNet top-1 accuracy the paper prints, in percent; `None` where it prints none.
        source: Table or figure of the paper.
    """

    name: str
    family: str
    width: float
    num_experts: int | None
    paper_madds: int | None = None
    paper_top1: float | None = None
    source: str | None = None


_WIDTHS = {"025": 0.25, "050": 0.5, "075": 0.75, "100": 1.0}
_EXPERTS = (2, 4, 8, 16, 32)
# Figure 2, read off to 0.2 points: top-1 of each width for the static network and for each number of experts.
_FIGURE_2 = {
    None: (50.3, 63.8, 69.2, 71.7),
    2: (53.5, 66.0, 70.0, 72.6),
    4: (57.4, 67.5, 71.3, 73.9),
    8: (59.8, 68.4, 72.4, 75.2),
    16: (61.8, 70.0, 73.8, 75.6),
    32: (62.7, 71.6, 73.9, 75.8),
}
# Table 1. At 1.0x with 8 experts the paper disagrees with its own Figure 2 (73.7 here, about 75.2 there).
_TABLE_1 = {("100", None): (567_000_000, 71.9), ("100", 8): (600_000_000, 73.7)}
_NAME = re.compile(r"mobilenet_v1_(?:cc_)?(?P<width>\d{3})(?:_(?P<experts>[1-9]\d*)e)?")


def list_models() -> list[str]:
    """Return the names of the networks of the paper; other numbers of experts and widths can be created too."""
    return [_name(width, experts) for width in _WIDTHS for experts in (None, *_EXPERTS)]


def get_model_info(name: str) -> ModelInfo:
    """Return what is known of a network.

    Raises:
        ValueError: No network can be made of the name.
    """
    digits, experts = _parse(name)
    width = int(digits) / 100
    if (digits, experts) in _TABLE_1:
        madds, top1 = _TABLE_1[digits, experts]
        return ModelInfo(name, "mobilenet_v1", width, experts, madds, top1, "CondConv, Table 1")
    if digits in _WIDTHS and experts in _FIGURE_2:
        top1 = _FIGURE_2[experts][list(_WIDTHS).index(digits)]
        return ModelInfo(name, "mobilenet_v1", width, experts, None, top1, "CondConv, Figure 2, read off")
    return ModelInfo(name, "mobilenet_v1", width, experts)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    routing: str | Callable[..., nn.Module] = "sigmoid",
    scope: str | Scope = "block",
    conditional_classifier: bool = True,
    first_block: int = 6,
    init: str = "independent",
    **options: Any,
) -> nn.Module:
    """Return a network by name, with random parameters.

    Args:
        name: `mobilenet_v1_050` is static, `mobilenet_v1_cc_050_8e` its form with 8 experts; any width in percent
            and any number of experts.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input.
        routing: Of conditional networks; see `condconv.convert_`.
        scope: Of conditional networks; the paper's is one routing a block.
        conditional_classifier: Whether the classifier of a conditional network has experts too, as in the paper.
        first_block: First conditional separable block, counted from 1; the paper's is 6 (its "layer 7").
        init: Of conditional networks: `"independent"` draws each expert on its own, as the paper does; `"preserve"`
            starts as the static network of the same seed, with experts that differ a little.
        **options: Of the network: `output_stride`, `drop_rate` (see `condconv.models.MobileNetV1`).

    Returns:
        The network, in training mode. A static network and its conditional form made with the same seed share the
        initial parameters of all layers that are static in both.

    Raises:
        ValueError: No network can be made of the name, or an option is out of range.
        TypeError: An option the network does not have.

    Example:
        >>> model = create_model("mobilenet_v1_cc_025_4e", num_classes=10, output_stride=8)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    digits, experts = _parse(name)
    model = MobileNetV1(int(digits) / 100, num_classes=num_classes, in_chans=in_chans, **options)
    if experts is None:
        return model
    blocks = len(model.blocks)
    if not 1 <= first_block <= blocks:
        raise ValueError(f"first_block must lie between 1 and {blocks}, got {first_block!r}")
    conditional = [f"blocks.{index}.*" for index in range(first_block - 1, blocks)]
    convert_(
        model,
        experts,
        where=select.name(*conditional),
        routing=routing,
        scope=scope,
        classifier=conditional_classifier,
        example_input=torch.zeros(1, in_chans, 32, 32),
        init=init,
    )
    return model


def _name(width: str, experts: int | None) -> str:
    return f"mobilenet_v1_{width}" if experts is None else f"mobilenet_v1_cc_{width}_{experts}e"


def _parse(name: str) -> tuple[str, int | None]:
    """Return the width in percent and the number of experts a name stands for."""
    match = _NAME.fullmatch(name)
    if match is not None:
        experts = None if match["experts"] is None else int(match["experts"])
        if _name(match["width"], experts) == name and int(match["width"]) > 0:
            return match["width"], experts
    known = ", ".join(list_models()[:4])
    raise ValueError(f"name must be one of condconv.list_models(), such as {known}, got {name!r}")
