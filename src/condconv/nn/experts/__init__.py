"""Stores of experts: what the kernels of a layer are made of."""

from condconv.nn.experts.base import Experts, KernelSpec, MixCost
from condconv.nn.experts.build import EXPERTS, make_experts
from condconv.nn.experts.dense import DenseExperts
from condconv.nn.experts.start import init_experts_, is_expert_spread, spread_experts

__all__ = [
    "EXPERTS",
    "DenseExperts",
    "Experts",
    "KernelSpec",
    "MixCost",
    "init_experts_",
    "is_expert_spread",
    "make_experts",
    "spread_experts",
]
