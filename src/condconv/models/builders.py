"""Static networks by their size, made of timm's parts: timm's own, and two for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from condconv.errors import UsageError, require_extra, shown

_IN_TIMM = "timm.models.efficientnet"


def by_name(name_in_timm: Callable[[str], str]) -> dict[str, Any]:
    """Return the builder of the networks that timm has, and their names there, as `Family` takes them."""

    def build(size: str, **options: Any) -> nn.Module:
        network: nn.Module = require_extra("timm", "models").create_model(name_in_timm(size), **options)
        return network

    return {"build": build, "name_in_timm": name_in_timm}


def by_width(prefix: str, generator: str) -> dict[str, Any]:
    """Return a network at any width in percent: timm has names for a few; its generator makes all."""

    def build(size: str, **options: Any) -> nn.Module:
        generate = getattr(require_extra(_IN_TIMM, "models"), generator)
        network: nn.Module = generate(f"{prefix}_100", int(size) / 100, **options)
        return network

    return {"build": build, "name_in_timm": lambda size: f"{prefix}_{size}"}


def mobilenet_v1() -> dict[str, Any]:
    """Return MobileNetV1, whose option `output_stride` leaves out the earliest halvings."""
    timms = by_width("mobilenetv1", "_gen_mobilenet_v1")

    def build(size: str, output_stride: int = 32, **options: Any) -> nn.Module:
        # timm would dilate the late layers, whose kernels then see nothing of a small map but their own pixel.
        network: nn.Module = timms["build"](size, **options)
        _leave_out_halvings_(network, 32 // output_stride)
        return network

    return timms | {"build": build}


def small(name: str, stem: int, stages: Sequence[str], surplus: int) -> dict[str, Any]:
    """Return a network for images of 16 to 64 pixels, at any width in percent.

    Args:
        name: Name of its family.
        stem: Channels of the first convolution.
        stages: Blocks in timm's words; a `c` and a number are channels at full width.
        surplus: Ratio of timm's halvings, whose first is the stem's, to those that the network has.
    """

    def build(size: str, *, output_stride: int = 4, se: float | None = None, **options: Any) -> nn.Module:
        in_timm = require_extra(_IN_TIMM, "models")
        if se is not None and not (type(se) in (int, float) and 0 < se <= 1):
            raise UsageError(
                f"`se` must be None or a number above 0 and at most 1, got {shown(se)}: give the hidden units of "
                "squeeze-and-excitation as a share of the channels, such as 0.25"
            )
        if options.get("features_only"):
            options.setdefault("out_indices", tuple(range(len(stages))))
        network: nn.Module = in_timm._create_effnet(
            name,
            pretrained_cfg={"architecture": name},  # without one, timm warns that it knows none
            block_args=in_timm.decode_arch_def([[stage] for stage in stages]),
            stem_size=stem,
            num_features=0,
            # To whole channels: multiples of 8 would leave hardly a choice of widths.
            round_chs_fn=partial(in_timm.round_channels, multiplier=int(size) / 100, divisor=1),
            norm_layer=options.pop("norm_layer", None) or partial(nn.BatchNorm2d, **in_timm.resolve_bn_args(options)),
            act_layer=in_timm.resolve_act_layer(options, "relu"),
            **options,
        )
        _leave_out_halvings_(network, surplus)
        if se is not None:
            _squeeze_and_excite_(network, se)
        return network

    return {"build": build, "name_in_timm": lambda size: f"{name}_{size}"}


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


def _squeeze_and_excite_(network: nn.Module, ratio: float) -> None:
    """Add squeeze-and-excitation to every block, in place: before a pointwise convolution, after one of 3 x 3."""
    blocks = require_extra("timm.models._efficientnet_blocks", "models")
    found = False
    for parent in [*network.modules()]:
        for name, block in [*parent.named_children()]:
            if isinstance(block, (blocks.DepthwiseSeparableConv, blocks.ConvBnAct)):
                found = True
                separable = hasattr(block, "se")
                first: Any = block.conv_dw if separable else block.conv
                added = blocks.SqueezeExcite(first.out_channels, rd_ratio=ratio).to(first.weight)
                if separable:
                    block.se = added
                else:
                    setattr(parent, name, nn.Sequential(OrderedDict(conv=block.conv, bn1=block.bn1, se=added)))
    if not found:
        raise UsageError(f"`se` must be None for a network without blocks, got {shown(ratio)}: leave out `feature_cls`")
