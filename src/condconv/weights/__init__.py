"""Load existing weights into networks with experts, and convert them back."""

from condconv.weights.api import load_pretrained, load_state_dict
from condconv.weights.report import LoadReport
from condconv.weights.timm_format import to_timm_state_dict

__all__ = ["LoadReport", "load_pretrained", "load_state_dict", "to_timm_state_dict"]
