"""The paper's networks by name."""

from condconv.models.names import list_models
from condconv.models.paper import TABLE_3, TABLE_4, Ablation, PaperRow
from condconv.models.registry import ModelInfo, create_model, get_model_info
from condconv.models.timm_registry import register_timm_models

__all__ = [
    "TABLE_3",
    "TABLE_4",
    "Ablation",
    "ModelInfo",
    "PaperRow",
    "create_model",
    "get_model_info",
    "list_models",
    "register_timm_models",
]
