"""What weights do not show of their network: its padding, and the epsilon of its batch norms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from condconv.errors import UsageError
from condconv.nn import TFSameConv2d
from condconv.nn.foreign import FOREIGN_PADDING, full_name


@dataclass(frozen=True)
class Arithmetic:
    """How a network computes with its weights.

    Attributes:
        tf_padding: Whether its strided convolutions pad as TensorFlow's do; otherwise evenly on both sides.
        eps: Of its batch norms.
    """

    tf_padding: bool
    eps: float

    def __str__(self) -> str:
        """Return the remedy for a network that computes differently."""
        return f"create the network {'with' if self.tf_padding else 'without'} 'tf_' before its name, bn_eps={self.eps}"


TENSORFLOW = Arithmetic(tf_padding=True, eps=1e-3)

# Names that tell whose network a source is; the first that is found counts. torchvision's stem is as wide in B4 as in
# B5, but the first stage has a third block from B5 on; EfficientNetV2 has no squeeze-and-excitation there.
_KNOWN = (
    (r"features\.1\.2\.block\.1\.fc1\.weight", "torchvision's EfficientNet-B5, B6 or B7", Arithmetic(False, 1e-3)),
    (r"features\.1\.0\.block\.1\.fc1\.weight", "torchvision's EfficientNet-B0 to B4", Arithmetic(False, 1e-5)),
    (r"features\.1\.0\.block\.0\.0\.weight", "torchvision's EfficientNetV2", Arithmetic(False, 1e-3)),
    (r"features\.1\.conv\.0\.0\.weight", "torchvision's MobileNetV2", Arithmetic(False, 1e-5)),
    (r"_conv_stem\.weight", "the package efficientnet_pytorch's", TENSORFLOW),
)
# timm is not imported here, so its layers are recognised by their names.
_TF_CLASSES = {*FOREIGN_PADDING, "timm.layers.conv2d_same.Conv2dSameExport"}


def known_source(names: Iterable[str]) -> tuple[str, Arithmetic] | None:
    """Return whose network a source's names belong to, and how it computes, or `None` if the names do not show it.

    Args:
        names: Of the source's tensors, also with a prefix.

    Source:
        torchvision's `models/efficientnet.py` and `models/mobilenetv2.py`; `utils.py` of efficientnet_pytorch.
    """
    names = list(names)
    for pattern, whose, arithmetic in _KNOWN:
        if any(re.fullmatch(rf"(.*\.)?{pattern}", name) for name in names):
            return whose, arithmetic
    return None


def check_arithmetic(model: nn.Module, wanted: Arithmetic, whose: str) -> None:
    """Refuse a network that computes something else from the same weights.

    Args:
        model: The network; every layer is checked.
        wanted: How the weights' own network computes.
        whose: What that is, for the message.

    Raises:
        UsageError: A layer pads differently, or a batch norm has another epsilon.
    """
    for name, module in model.named_modules():
        difference = _difference(module, wanted)
        if difference is not None:
            rule, got = difference
            raise UsageError(f"`model` must {rule} to take weights of {whose}, got {got} in {name}: {wanted}")


def _difference(module: Any, wanted: Arithmetic) -> tuple[str, str] | None:
    """Return what a layer must do and what it does, or `None` if that is the same."""
    if hasattr(module, "running_mean") and module.eps != wanted.eps:
        return f"have batch norms with eps={wanted.eps}", str(module.eps)
    padded = hasattr(module, "weight") and hasattr(module, "kernel_size")
    # Without a stride, or with one tap, both ways are the same.
    if not padded or set(module.stride) == {1} or set(module.kernel_size) == {1}:
        return None
    if _pads_as_tensorflow(module) != wanted.tf_padding:
        rule = f"pad strided convolutions {'as TensorFlow does' if wanted.tf_padding else 'evenly'}"
        return rule, f"{type(module).__name__} with padding={module.padding!r}"
    return None


def _pads_as_tensorflow(layer: Any) -> bool:
    named = _TF_CLASSES & {full_name(base) for base in type(layer).__mro__}
    ours = isinstance(layer, TFSameConv2d) or layer.padding == "tf_same"
    return ours or bool(named) or getattr(layer, "dynamic_padding", False)  # the last is timm's conditional layer's
