"""Stores of experts: what the kernels of a layer are made of."""

from condconv.nn.experts.base import Experts, KernelSpec, MixCost
from condconv.nn.experts.build import EXPERTS, ExpertsOption, make_experts, resolve_experts, why_not_experts
from condconv.nn.experts.decomposed import DecomposedExperts
from condconv.nn.experts.deltas import DeltaExperts
from condconv.nn.experts.dense import DenseExperts
from condconv.nn.experts.mixed import MixedExperts
from condconv.nn.experts.modulated import ModulatedExperts
from condconv.nn.experts.shared import SharedExperts
from condconv.nn.experts.start import init_experts_, is_expert_spread, spread_experts

__all__ = [
    "EXPERTS",
    "DecomposedExperts",
    "DeltaExperts",
    "DenseExperts",
    "Experts",
    "ExpertsOption",
    "KernelSpec",
    "MixCost",
    "MixedExperts",
    "ModulatedExperts",
    "SharedExperts",
    "init_experts_",
    "is_expert_spread",
    "make_experts",
    "resolve_experts",
    "spread_experts",
    "why_not_experts",
]
