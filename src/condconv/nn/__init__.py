"""Layers with example-dependent kernels, and their routing functions."""

from condconv.nn.block_routing import BlockRouting, RoutingSlot, route_block_
from condconv.nn.choice import LayerChoice
from condconv.nn.classes import CONDITIONAL_CLASSES
from condconv.nn.conditional import ConditionalLayer
from condconv.nn.conv import CondConv1d, CondConv2d, CondConv3d
from condconv.nn.conv_transpose import CondConvTranspose1d, CondConvTranspose2d, CondConvTranspose3d
from condconv.nn.experts import (
    EXPERTS,
    DecomposedExperts,
    DeltaExperts,
    DenseExperts,
    Experts,
    KernelSpec,
    MixCost,
    MixedExperts,
    ModulatedExperts,
    SharedExperts,
    init_experts_,
    make_experts,
    spread_experts,
)
from condconv.nn.factory import ROUTING, make_routing
from condconv.nn.fixed_routing import ConstantRouting, ExternalRouting
from condconv.nn.folding import fold_batch_norm
from condconv.nn.heads import Part
from condconv.nn.linear import CondLinear
from condconv.nn.methods import METHODS, Method
from condconv.nn.routing import HiddenRouting, HierarchicalRouting, SigmoidRouting, TopKRouting
from condconv.nn.routing_function import RoutingFunction
from condconv.nn.same_padding import TFSameConv2d
from condconv.nn.softmax_routing import SoftmaxRouting, anneal_
from condconv.nn.standardization import Standardization

__all__ = [
    "CONDITIONAL_CLASSES",
    "EXPERTS",
    "METHODS",
    "ROUTING",
    "BlockRouting",
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "CondConvTranspose1d",
    "CondConvTranspose2d",
    "CondConvTranspose3d",
    "CondLinear",
    "ConditionalLayer",
    "ConstantRouting",
    "DecomposedExperts",
    "DeltaExperts",
    "DenseExperts",
    "Experts",
    "ExternalRouting",
    "HiddenRouting",
    "HierarchicalRouting",
    "KernelSpec",
    "LayerChoice",
    "Method",
    "MixCost",
    "MixedExperts",
    "ModulatedExperts",
    "Part",
    "RoutingFunction",
    "RoutingSlot",
    "SharedExperts",
    "SigmoidRouting",
    "SoftmaxRouting",
    "Standardization",
    "TFSameConv2d",
    "TopKRouting",
    "anneal_",
    "fold_batch_norm",
    "init_experts_",
    "make_experts",
    "make_routing",
    "route_block_",
    "spread_experts",
]
