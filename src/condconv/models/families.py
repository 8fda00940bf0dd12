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

from condconv.errors import require_extra
from condconv.models import builders


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
        first_conditional: Name of the first layer with experts.
        conditional_head: Whether the head has experts.
        conditional_classifier: Whether the classifier has experts.
        source: Source of the placement.
        listed: Sizes and numbers of experts that `list_models` returns.
        output_strides: Possible ratios of the image's size to that of the last feature map.
        classes_widen: Whether timm starts the classifier between ±1 / sqrt(classes), which is wider for fewer classes.
        routing: Routing of its networks with experts, unless another is asked for.
        experts: Experts of its networks with experts, unless others are asked for.
        init: How its networks with experts start, unless another start is asked for.
        image_size: Side of the images that they are for, in pixels.
        num_classes: Classes with which their cost is listed.
    """

    name: str
    sizes: str
    build: Callable[..., nn.Module]
    name_in_timm: Callable[[str], str]
    stem: str
    blocks: str
    head: str | None
    classifier: str
    first_conditional: str
    conditional_head: bool
    conditional_classifier: bool
    source: str
    listed: dict[str, tuple[int, ...]]
    output_strides: tuple[int, ...] = (8, 16, 32)
    classes_widen: bool = False
    routing: str = "sigmoid"
    experts: str = "dense"
    init: str = "random"
    image_size: int = 224
    num_classes: int = 1000

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
        **builders.by_name(lambda size: f"{prefix}_{'b1' if size == 'b0_depth' else size}"),
        **_EFFICIENTNET,
        first_conditional="blocks.4.0",
        conditional_head=False,
        conditional_classifier=False,
        source=source,
        listed={"b0": (4, 8), "b0_depth": (8,)},
    )


def _small(name: str, stem: int, stages: tuple[str, ...], surplus: int, first_conditional: str) -> Family:
    return Family(
        name=name,
        sizes=r"[0-9]{3}",
        **builders.small(name, stem, stages, surplus) | _EFFICIENTNET | {"head": None},
        first_conditional=first_conditional,
        conditional_head=False,
        conditional_classifier=False,
        source="Ours, for images of 16 to 64 pixels",
        listed={"100": (8,)},
        output_strides=(4,),
        routing="sigmoid(standardize=True)",
        experts="deltas",
        init="same_output",
        image_size=32,
        num_classes=10,
    )


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="mobilenet_v1",
            sizes=r"[0-9]{3}",
            **builders.mobilenet_v1() | _EFFICIENTNET | {"head": None},
            first_conditional="blocks.3.0",
            conditional_head=False,
            conditional_classifier=True,
            source=_PAPER,
            listed=dict.fromkeys(("025", "050", "075", "100"), (2, 4, 8, 16, 32)),
            output_strides=(2, 4, 8, 16, 32),
        ),
        Family(
            name="mobilenet_v2",
            sizes=r"[0-9]{3}",
            **builders.by_width("mobilenetv2", "_gen_mobilenet_v2"),
            **_EFFICIENTNET,
            first_conditional="blocks.3.0",
            conditional_head=True,
            conditional_classifier=True,
            source="Ours, the paper does not settle it; one of three choices that give its 329M",
            listed={"100": (8,)},
        ),
        Family(
            name="mnasnet_a1",
            sizes=r"[0-9]{3}",
            **builders.by_width(
                "semnasnet", "_gen_mnasnet_a1"
            ),  # MnasNet-A1 has squeeze-and-excitation, hence timm's name
            **_EFFICIENTNET,
            first_conditional="blocks.4.0",
            conditional_head=False,
            conditional_classifier=False,
            source=_PAPER,
            listed={"100": (8,)},
        ),
        Family(
            name="resnet",
            sizes="18|34|50|101|152",
            **builders.by_name(lambda size: f"resnet{size}"),
            stem="conv1",
            blocks=r"layer[0-9]\.[0-9]+",
            head=None,
            classifier="fc",
            first_conditional="layer4.0",
            conditional_head=False,
            conditional_classifier=False,
            source=f"{_PAPER}; v1.5, which strides in its 3 x 3 convolutions",
            listed={"50": (8,)},
        ),
        _efficientnet("efficientnet", f"{_PAPER}; padding and batch norm as torch's"),
        _efficientnet("tf_efficientnet", f"{_PAPER} and the authors' release; padding and batch norm as TensorFlow's"),
        _small("small_separable", 16, ("dsa_r2_k3_s1_c32", "dsa_r2_k3_s2_c64"), 1, "blocks.0.0"),
        _small("small_dense", 8, ("cn_r1_k3_s2_c16", "cn_r1_k3_s2_c32", "cn_r1_k3_s1_c32"), 2, "conv_stem"),
    )
}
