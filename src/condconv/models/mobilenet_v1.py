"""MobileNetV1, the paper's base network, at any width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Output channels and stride of the 13 separable blocks.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with batch norm and ReLU.

    Args:
        in_channels: C.
        out_channels: O.
        stride: Of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, O, H', W']`."""
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class MobileNetV1(nn.Module):
    """MobileNetV1: a 3x3 stem, 13 separable blocks, global average pooling and a linear classifier.

    Args:
        width: Multiplies every number of channels; the products are rounded to the nearest int.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the input.
        output_stride: Height of the input over that of the last feature map: 32 as in the paper (224 px), or 16, 8,
            4, 2 for small images; the earliest halvings are left out, so that cost moves to where detail is.
        drop_rate: Dropout before the classifier.

    Raises:
        ValueError: `width` is not positive, or `output_stride` is not one of those.

    Source:
        Howard et al., "MobileNets", 2017, Table 1. Deviation: padding is 1 on both sides, as in torch, where the
        original pads as TensorFlow's SAME.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, got {width!r}")
        if output_stride not in (2, 4, 8, 16, 32):
            raise ValueError(f"output_stride must be one of 2, 4, 8, 16, 32, got {output_stride!r}")
        strides = [2, *(stride for _, stride in _BLOCKS)]
        surplus = 32 // output_stride
        for index, stride in enumerate(strides):
            if surplus > 1 and stride == 2:
                strides[index], surplus = 1, surplus // 2
        channels = [max(1, round(out_channels * width)) for out_channels in (32, *(out for out, _ in _BLOCKS))]
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, channels[0], 3, strides[0], 1, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        pairs = zip(channels, channels[1:], strides[1:], strict=False)
        self.blocks = nn.Sequential(*(SeparableBlock(*arguments) for arguments in pairs))
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Fan-out of one group: on all channels, a depthwise kernel would start C times too small.
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[B, in_chans, H, W]` to the last feature map `[B, C, H / output_stride, W / output_stride]`."""
        features: Tensor = self.blocks(torch.relu(self.norm(self.stem(x))))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, in_chans, H, W]` to logits `[B, num_classes]`."""
        logits: Tensor = self.classifier(self.dropout(self.forward_features(x).mean((2, 3))))
        return logits
