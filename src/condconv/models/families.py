"""The families of networks: the static base of each, and where the paper puts experts.

The layers of a network are counted as in the paper, in the order in which they run: layer 1 is the stem, each block
(separable, inverted residual, bottleneck) is one layer, a 1x1 convolution after the blocks is one, and the classifier
is the last.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from condconv.errors import UsageError, require_extra


@dataclass(frozen=True)
class Family:
    """Networks that differ only in size.

    Attributes:
        name: First part of its networks' names.
        sizes: Pattern of the sizes that a name may have.
        build: Makes timm's network of a size, without trained weights; further arguments are timm's.
        name_in_timm: Returns the name that timm has, or would have, for a size.
        stem: Name of layer 1.
        blocks: Pattern of the names of the blocks.
        head: Name of the 1x1 convolution after the blocks; `None` if there is none.
        classifier: Name of the last layer.
        first_block: Name of the first block with experts.
        conditional_head: Whether the head has experts.
        conditional_classifier: Whether the classifier has experts.
        source: Source of the placement.
        listed: Sizes and numbers of experts that `list_models` returns.
        output_strides: Possible ratios of the image's size to that of the last feature map.
        classes_widen: Whether timm starts the classifier between ±1 / sqrt(classes), which is wider for fewer classes.
    """

    name: str
    sizes: str
    build: Callable[..., nn.Module]
    name_in_timm: Callable[[str], str]
    stem: str
    blocks: str
    head: str | None
    classifier: str
    first_block: str
    conditional_head: bool
    conditional_classifier: bool
    source: str
    listed: dict[str, tuple[int, ...]]
    output_strides: tuple[int, ...] = (8, 16, 32)
    classes_widen: bool = False

    def timm_name(self, size: str) -> str | None:
        """Return timm's name of the static network of a size; `None` if timm has none.

        Raises:
            MissingExtraError: timm is not installed.
        """
        name = self.name_in_timm(size)
        return name if require_extra("timm", "models").is_model(name) else None

    def network(self, model: nn.Module) -> nn.Module:
        """Return a network of the family: the model, or the one inside if timm wraps it to return features."""
        return next((each for each in model.children() if hasattr(each, self.stem)), model)

    def layers(self, model: nn.Module) -> list[str]:
        """Return the names of the layers of a network of the family, as the paper counts them."""
        modules = dict(model.named_modules())
        blocks = [name for name in modules if re.fullmatch(self.blocks, name)]
        last = (name for name in (self.head, self.classifier) if name is not None)
        # A network without classes has an Identity there, one for features nothing.
        return [self.stem, *blocks, *(name for name in last if hasattr(modules.get(name), "weight"))]


def _by_name(name_in_timm: Callable[[str], str]) -> dict[str, Any]:
    def build(size: str, **options: Any) -> nn.Module:
        network: nn.Module = require_extra("timm", "models").create_model(name_in_timm(size), **options)
        return network

    return {"build": build, "name_in_timm": name_in_timm}


def _by_width(prefix: str, generator: str) -> dict[str, Any]:
    """Return a network at any width in percent: timm has names for a few; its generator makes all."""

    def build(size: str, **options: Any) -> nn.Module:
        generate = getattr(require_extra("timm.models.efficientnet", "models"), generator)
        network: nn.Module = generate(f"{prefix}_100", int(size) / 100, **options)
        return network

    return {"build": build, "name_in_timm": lambda size: f"{prefix}_{size}"}


def _leave_out_halvings_(network: nn.Module, surplus: int) -> None:
    """Remove the earliest halvings, in place, so that the last feature map is larger by a factor."""
    output_stride = 32 // surplus
    feature_info: Any = network.feature_info
    for each in getattr(feature_info, "info", feature_info):
        each["reduction"] = max(1, each["reduction"] // surplus)
    for module in network.modules():
        if surplus > 1 and isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride, surplus = (1, 1), surplus // 2
    if surplus > 1:
        raise UsageError(
            f"`output_stride` must be 32 where other layers than convolutions halve, got {output_stride}: leave out "
            "`aa_layer`"
        )


_MOBILENET_V1 = _by_width("mobilenetv1", "_gen_mobilenet_v1")


def _mobilenet_v1(size: str, output_stride: int = 32, **options: Any) -> nn.Module:
    # timm would dilate the late layers, whose kernels then see nothing of a small map but their own pixel.
    network: nn.Module = _MOBILENET_V1["build"](size, **options)
    _leave_out_halvings_(network, 32 // output_stride)
    return network


# What every network has in common that timm builds as an EfficientNet, the names of its layers above all.
_EFFICIENTNET: dict[str, Any] = {
    "stem": "conv_stem",
    "blocks": r"blocks\.[0-9]+\.[0-9]+",
    "head": "conv_head",
    "classifier": "classifier",
    "classes_widen": True,
}
_PAPER = "CondConv, section 4"


def _efficientnet(prefix: str, source: str) -> Family:
    return Family(
        name=prefix,
        sizes=r"b[0-8]|b0_depth",
        # B0 at depth 1.1 is what B1 is, apart from the size of its images.
        **_by_name(lambda size: f"{prefix}_{'b1' if size == 'b0_depth' else size}"),
        **_EFFICIENTNET,
        first_block="blocks.4.0",
        conditional_head=False,
        conditional_classifier=False,
        source=source,
        listed={"b0": (4, 8), "b0_depth": (8,)},
    )


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="mobilenet_v1",
            sizes=r"[0-9]{3}",
            **_MOBILENET_V1 | _EFFICIENTNET | {"build": _mobilenet_v1, "head": None},
            first_block="blocks.3.0",
            conditional_head=False,
            conditional_classifier=True,
            source=_PAPER,
            listed=dict.fromkeys(("025", "050", "075", "100"), (2, 4, 8, 16, 32)),
            output_strides=(2, 4, 8, 16, 32),
        ),
        Family(
            name="mobilenet_v2",
            sizes=r"[0-9]{3}",
            **_by_width("mobilenetv2", "_gen_mobilenet_v2"),
            **_EFFICIENTNET,
            first_block="blocks.3.0",
            conditional_head=True,
            conditional_classifier=True,
            source="Ours, the paper does not settle it; one of three choices that give its 329M",
            listed={"100": (8,)},
        ),
        Family(
            name="mnasnet_a1",
            sizes=r"[0-9]{3}",
            **_by_width("semnasnet", "_gen_mnasnet_a1"),  # MnasNet-A1 has squeeze-and-excitation, hence timm's name
            **_EFFICIENTNET,
            first_block="blocks.4.0",
            conditional_head=False,
            conditional_classifier=False,
            source=_PAPER,
            listed={"100": (8,)},
        ),
        Family(
            name="resnet",
            sizes="18|34|50|101|152",
            **_by_name(lambda size: f"resnet{size}"),
            stem="conv1",
            blocks=r"layer[0-9]\.[0-9]+",
            head=None,
            classifier="fc",
            first_block="layer4.0",
            conditional_head=False,
            conditional_classifier=False,
            source=f"{_PAPER}; v1.5, which strides in its 3 x 3 convolutions",
            listed={"50": (8,)},
        ),
        _efficientnet("efficientnet", f"{_PAPER}; padding and batch norm as torch's"),
        _efficientnet("tf_efficientnet", f"{_PAPER} and the authors' release; padding and batch norm as TensorFlow's"),
    )
}
