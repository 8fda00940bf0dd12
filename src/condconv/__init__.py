"""Example-dependent convolution kernels (CondConv) for any convolutional network.

What is public is imported at its first use: `condconv --help` does without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condconv._lazy import public_names

if TYPE_CHECKING:
    from condconv import nn as nn
    from condconv import ops as ops
    from condconv.convert import (
        ConversionReport,
        QuantizationReport,
        Scope,
        convert_,
        convert_like_,
        fold_batch_norms_,
        quantize_experts_,
        select,
    )
    from condconv.counting import CostReport, count
    from condconv.models import create_model, get_model_info, list_models, register_timm_models
    from condconv.nn import (
        CondConv1d,
        CondConv2d,
        CondConv3d,
        CondConvTranspose1d,
        CondConvTranspose2d,
        CondConvTranspose3d,
        CondLinear,
    )
    from condconv.weights import LoadReport, load_pretrained, to_timm_state_dict

__version__ = "0.1.0"

__all__ = [
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "CondConvTranspose1d",
    "CondConvTranspose2d",
    "CondConvTranspose3d",
    "CondLinear",
    "ConversionReport",
    "CostReport",
    "LoadReport",
    "QuantizationReport",
    "Scope",
    "convert_",
    "convert_like_",
    "count",
    "create_model",
    "fold_batch_norms_",
    "get_model_info",
    "list_models",
    "load_pretrained",
    "quantize_experts_",
    "register_timm_models",
    "select",
    "to_timm_state_dict",
]

# The first five have what is listed above.
__getattr__, __dir__ = public_names(__name__, __all__, ("nn", "convert", "counting", "models", "weights", "ops"))
