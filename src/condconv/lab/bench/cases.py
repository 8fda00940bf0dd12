"""What is measured: single layers and whole networks, each with its static twin and timm's form of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from condconv.counting import count
from condconv.counting.tracing import trace
from condconv.errors import MissingExtraError, require_extra
from condconv.models import create_model, get_model_info
from condconv.nn import CondConv2d
from condconv.ops.geometry import is_depthwise
from condconv.weights import to_timm_state_dict

IMAGE_SIZE = 224


@dataclass(frozen=True)
class Trio:
    """The same case three times, with the same weights where that is possible.

    Attributes:
        static: The twin without experts.
        ours: With experts.
        timm: timm's form of `ours`, with its weights; `None` where timm is missing or has none.
        inputs: Positional arguments of `ours` and `timm`; the static twin takes the first.
    """

    static: nn.Module
    ours: nn.Module
    timm: nn.Module | None
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class LayerCase:
    """A convolution without bias, given its routing weights.

    Attributes:
        kernel: Its height and width.
        in_channels: C.
        out_channels: O.
        size: Height and width of its input, which is padded by half a kernel.
        groups: 1, or C for a depthwise convolution.
        stride: In both directions.
        experts: E.
    """

    kernel: int
    in_channels: int
    out_channels: int
    size: int
    groups: int = 1
    stride: int = 1
    experts: int = 8

    @property
    def name(self) -> str:
        """Describe it, as `1x1 672->112 @14`; stride and number of experts where they are not 1 and 8."""
        depthwise = "depthwise " if is_depthwise(self.groups, self.in_channels) else ""
        stride = f" /{self.stride}" if self.stride > 1 else ""
        experts = f" {self.experts}e" if self.experts != 8 else ""
        channels = f"{self.in_channels}" if depthwise else f"{self.in_channels}->{self.out_channels}"
        return f"{depthwise}{self.kernel}x{self.kernel} {channels} @{self.size}{stride}{experts}"

    @property
    def bound(self) -> float:
        """Return (HW + E) / HW for HW output pixels: multiply-adds with experts over those without."""
        pixels = ((self.size - 1) // self.stride + 1) ** 2
        return (pixels + self.experts) / pixels

    @property
    def expert_bytes(self) -> int:
        """Return the bytes of the experts in fp32."""
        return 4 * self.experts * self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    def make(self, batch: int) -> Trio:
        """Return the layers and an input of `batch` examples, fp32 on the CPU."""
        shape = (self.in_channels, self.out_channels, self.kernel, self.stride, self.kernel // 2)
        options: dict[str, Any] = {"groups": self.groups, "bias": False}
        ours = CondConv2d(*shape, **options, num_experts=self.experts, routing="external")
        timm = None
        if (layers := _timm("timm.layers")) is not None:
            timm = layers.CondConv2d(*shape, **options, num_experts=self.experts)
            timm.weight.data.copy_(ours.experts.kernels().detach().flatten(1))
        inputs = (torch.randn(batch, self.in_channels, self.size, self.size), torch.rand(batch, self.experts))
        return Trio(nn.Conv2d(*shape, **options), ours, timm, inputs)


@dataclass(frozen=True)
class NetworkCase:
    """A conditional network of `condconv.list_models()`, on images of 224 pixels.

    Attributes:
        network: Its name.
        experts: As in `condconv.create_model`.
    """

    network: str
    experts: str = "dense"

    @property
    def name(self) -> str:
        """Return the name of the network, and what its experts are if they are not dense."""
        return self.network if self.experts == "dense" else f"{self.network}, {self.experts}"

    @property
    def bound(self) -> float:
        """Return its multiply-adds over those of its static twin."""
        return _costs(self.network, self.experts)[0] / _costs(_static_name(self.network))[0]

    @property
    def expert_bytes(self) -> int:
        """Return the bytes of all its experts in fp32."""
        return _costs(self.network, self.experts)[1]

    def make(self, batch: int) -> Trio:
        """Return the networks and `batch` random images, fp32 on the CPU."""
        ours = create_model(self.network, **_options(self.experts))
        timm = None
        if self.experts == "dense" and (library := _timm("timm")) is not None and library.is_model(self.network):
            timm = library.create_model(self.network)
            timm.load_state_dict(to_timm_state_dict(ours))
        images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE)
        return Trio(create_model(_static_name(self.network)), ours, timm, (images,))


Case = LayerCase | NetworkCase

LAYERS = (
    LayerCase(1, 672, 112, 14),
    LayerCase(1, 192, 1152, 7),
    LayerCase(1, 1152, 192, 7),
    LayerCase(1, 1152, 320, 7),
    LayerCase(1, 64, 256, 56),
    LayerCase(5, 672, 672, 14, groups=672),
    LayerCase(3, 1152, 1152, 7, groups=1152),
    LayerCase(3, 144, 144, 56, groups=144),
    LayerCase(3, 64, 64, 56),
    LayerCase(3, 256, 256, 14),
    LayerCase(3, 512, 512, 7),
)
NETWORKS = (
    "tf_efficientnet_cc_b0_4e",
    "tf_efficientnet_cc_b0_8e",
    "mobilenet_v1_cc_050_8e",
    "mobilenet_v2_cc_100_8e",
    "resnet_cc_50_8e",
)


@cache
def layers_of(name: str) -> tuple[LayerCase, ...]:
    """Return the distinct conditional convolutions of a network, in the order in which they run.

    Raises:
        MissingExtraError: The network is based on timm's, which is not installed.
        ValueError: No network can be made of the name.
    """
    with torch.device("meta"):
        calls = trace(create_model(name), torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).calls
    found: dict[LayerCase, None] = {}
    for call in calls:
        layer = call.module
        if isinstance(layer, CondConv2d) and call.input_shape is not None:
            shape = (layer.kernel_size[0], layer.in_channels, layer.out_channels, call.input_shape[2])
            found[LayerCase(*shape, layer.groups, layer.stride[0], layer.num_experts)] = None
    return tuple(found)


def _static_name(name: str) -> str:
    info = get_model_info(name)
    return f"{info.family}_{info.size}"


def _options(experts: str) -> dict[str, Any]:
    return {} if experts == "dense" else {"experts": experts}  # a static network takes none


@cache
def _costs(name: str, experts: str = "dense") -> tuple[int, int]:
    with torch.device("meta"):
        total = count(create_model(name, **_options(experts)), torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).total
    return total.madds, total.expert_bytes


def _timm(module: str) -> Any:
    try:
        return require_extra(module, "models")
    except MissingExtraError:
        return None
