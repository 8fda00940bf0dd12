"""The paper's networks by name."""

from condconv.models.mobilenet_v1 import MobileNetV1, SeparableBlock
from condconv.models.registry import ModelInfo, create_model, get_model_info, list_models

__all__ = ["MobileNetV1", "ModelInfo", "SeparableBlock", "create_model", "get_model_info", "list_models"]
