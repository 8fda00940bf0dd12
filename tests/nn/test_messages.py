"""Every argument of everything public in `condconv.nn`: what is wrong is said in one sentence of four parts.

A name or an argument that is new has no rows here and fails: give it some.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from condconv import nn as layers
from condconv.errors import UsageError
from condconv.nn import (
    CondConv2d,
    ConditionalLayer,
    CondLinear,
    HierarchicalRouting,
    KernelSpec,
    Part,
    RoutingFunction,
    SigmoidRouting,
)
from condconv.nn.conv_base import CondConvNd
from tests.messages import why_not_four_parts

NO_COUNTS: tuple[Any, ...] = (0, -1, 1.5, "4", None, True, [4], np.float64(2), 2**40, "n" * 9999)
NO_SIZES: tuple[Any, ...] = (-1, 0.5, "3", b"3", None, [], (1, 1, 1, 1), 2**40, torch.ones(1), "n" * 9999)
NO_NAMES: tuple[Any, ...] = ("nope", None, 1, ["auto"], b"auto", {}, "\n", "n" * 9999)
NO_TENSORS: tuple[Any, ...] = (1.5, "tensor", [[1.0]], np.ones(3), torch.ones(2, 3).to_sparse())
NO_MODULES: tuple[Any, ...] = (None, "conv", 3, nn.Conv2d, [nn.Identity()])
NOT_POSITIVE: tuple[Any, ...] = (0, -1.0, "hot", float("nan"), float("inf"), [1.0], True)

WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("in_channels", "out_channels", "in_features", "out_features", "num_experts", "k"), NO_COUNTS),
    "groups": (*NO_COUNTS, 5),
    "kernel_size": (0, *NO_SIZES),
    "stride": (0, *NO_SIZES),
    "dilation": (0, *NO_SIZES),
    "padding": (*NO_SIZES, "full"),
    "output_padding": NO_SIZES,
    "padding_mode": NO_NAMES,
    "bias": ("yes", 0.5, torch.ones(6), []),
    "device": ("nowhere", "cuda:x", 1.5, []),
    "dtype": ("float32", 3, torch.int64, torch.complex64, torch.float8_e5m2),
    "routing": (3, None, "nope", "", "sigmoid(1)", "sigmoid(x=1)", "n" * 9999, lambda *sizes: {}, SigmoidRouting(4, 9)),
    "experts": (3, None, "nope", "", "dense(1)", "dense(rank=1)", "n" * 9999, lambda *sizes: {}),
    "method": (*(each for each in NO_NAMES if each is not None), "", "se(x=1)", "dcd(annealing_steps=9)"),
    "impl": NO_NAMES,
    "expert_dropout": (-0.1, 1, 1.5, "half", None, float("nan")),
    "standardize": ("yes", 0.5, []),
    "learn": ("yes", 0.5, []),
    "hidden_ratio": NOT_POSITIVE,
    "least_hidden": NO_COUNTS,
    "parts": (3, "outputs", [], [("outputs", 3)], [Part("experts", 4)], [Part("a", 2), Part("experts", 3)]),
    "previous_experts": (-1, 0.5, "3", None, True),
    "weights": ("even", [1.0], torch.ones(2, 3), [float("nan")] * 3, object(), 1j, True),
    "temperature": (*NOT_POSITIVE, None),
    "final_temperature": NOT_POSITIVE,
    "annealing_steps": (-1, 0.5, "3", None, True, 3),
    "x": (None, *NO_TENSORS, torch.ones(3), torch.ones(2, 9, 9, 9)),
    "routing_weights": (*NO_TENSORS, torch.ones(2, 2), torch.ones(5)),
    "previous": (*NO_TENSORS, torch.ones(2, 3)),
    "layer": NO_MODULES,
    "norm": (*NO_MODULES, nn.LayerNorm(6), nn.BatchNorm2d(5), nn.BatchNorm2d(6, track_running_stats=False)),
    "model": NO_MODULES,
    "steps": (-1, 0.5, "3", None, True),
    "weight": (None, *NO_TENSORS, torch.ones(3), torch.ones(3, 6, 4).long()),
    "kernel": (None, *NO_TENSORS, torch.ones(6, 4).long()),
    "expert_spread": (-1, "loud", None, float("nan"), float("inf"), [0.5]),
    "block": (*NO_MODULES, nn.Sequential(), CondConv2d(4, 6, 3, num_experts=3)),
    "layers": (None, 3, [nn.Identity()], ["conv"]),
    "slot": ("slot", 3, SigmoidRouting(4, 3)),
    "until": ("conv", 3),
    "hand_over": ("yes", 0.5),
    "static": (None, nn.Identity(), nn.LazyConv2d(6, 3), "conv"),
    "init": NO_NAMES,
}
SPECIAL: dict[tuple[str, str], tuple[Any, ...]] = {
    ("HiddenRouting", "hidden_ratio"): (*NOT_POSITIVE, None),
    ("make_experts", "spec"): (),  # made by a layer
    ("make_experts", "num_experts"): (),
    ("make_experts", "device"): (),
    ("make_experts", "dtype"): (),
    ("init_experts_", "bias"): (*NO_TENSORS, torch.ones(6), torch.ones(2, 6), torch.ones(3, 6).long()),
    ("spread_experts", "routing_weights"): (None, *NO_TENSORS, torch.ones(2, 2), torch.ones(0)),
    ("route_block_", "routing_fn"): NO_MODULES,
    ("route_block_", "previous"): ("slot", 3, SigmoidRouting(4, 3)),
}
NOTHING_TO_CHECK = {
    "ROUTING": "a table",
    "METHODS": "a table",
    "Method": "an entry of it",
    "CONDITIONAL_CLASSES": "a table",
    "LayerChoice": "a type; tests/nn/test_choice.py walks its messages",
    "EXPERTS": "a table",
    "Experts": "the base of the stores",
    "KernelSpec": "made by a layer of its own arguments",
    "Standardization": "made by routing functions, of what they have checked",
    "Part": "made by stores of experts",
    "MixCost": "what Experts.cost returns",
    "DeltaExperts": "made by make_experts, of what the layer has checked",
    "DenseExperts": "made by make_experts, of what the layer has checked",
    "MixedExperts": "the base of dense experts and of deltas",
    "ModulatedExperts": "made by make_experts; tests/nn/experts/test_contract.py has the messages about its options",
    "DecomposedExperts": "made by make_experts; tests/nn/experts/test_contract.py has the messages about its options",
    "SharedExperts": "made by make_experts; tests/nn/experts/test_contract.py has the messages about its options",
    "BlockRouting": "what route_block_ returns",
    "RoutingSlot": "made by route_block_; its call is walked below",
    "TFSameConv2d": "torch.nn.Conv2d checks its arguments",
    "ConditionalLayer": "the base of the layers",
}
DEFAULTED = ("num_experts", "routing", "experts")
"""Arguments of layers that are the default's, or a method's, if they are `None`."""
Good = dict[str, Any]


def good(name: str) -> Good:
    """Return arguments that fit, for a name of `condconv.nn`."""
    made = getattr(layers, name)
    if made is CondLinear:
        return {"in_features": 4, "out_features": 6, "num_experts": 3}
    if isinstance(made, type) and issubclass(made, CondConvNd):
        return {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "num_experts": 3}
    if isinstance(made, type):
        return {"in_channels": 4, "num_experts": 3}
    conditional = CondConv2d(4, 6, 3, num_experts=3)
    arguments: dict[str, Callable[[], Good]] = {
        "make_routing": lambda: {"routing": "sigmoid", "in_channels": 4, "num_experts": 3},
        "make_experts": lambda: {"experts": "dense", "spec": KernelSpec((6, 4), 6), "num_experts": 3},
        "fold_batch_norm": lambda: {"layer": conditional, "norm": nn.BatchNorm2d(6)},
        "anneal_": lambda: {"model": conditional, "steps": 1},
        "init_experts_": lambda: {"weight": torch.ones(3, 6, 4), "bias": torch.ones(3, 6)},
        "spread_experts": lambda: {"kernel": torch.ones(6, 4), "routing_weights": torch.ones(3), "expert_spread": 0.5},
        "route_block_": lambda: {"block": nn.Identity(), "routing_fn": SigmoidRouting(4, 3), "layers": [conditional]},
    }
    return arguments[name]()


def parameters(made: Any) -> list[str]:
    """Return the names of the arguments, those that a base takes included."""
    kinds = made.__mro__[:-1] if isinstance(made, type) and issubclass(made, RoutingFunction) else [made]
    found = [each for kind in kinds if kind is not nn.Module for each in inspect.signature(kind).parameters.values()]
    return list(dict.fromkeys(each.name for each in found if each.kind is not each.VAR_KEYWORD))


PUBLIC = [name for name in layers.__all__ if name not in NOTHING_TO_CHECK]
CASES = [(name, argument) for name in PUBLIC for argument in parameters(getattr(layers, name))]


def refused(call: Callable[[], object], argument: str | None) -> None:
    """Check that a call is refused with a message about the argument."""
    with pytest.raises(UsageError) as caught:
        call()
    fault = why_not_four_parts(str(caught.value), argument)
    assert fault is None, f"{fault}: {caught.value}"


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_each_argument(name: str, argument: str) -> None:
    make: Callable[..., object] = getattr(layers, name)
    make(**good(name))
    for value in SPECIAL[name, argument] if (name, argument) in SPECIAL else WRONG[argument]:
        if value is None and name in LAYERS and argument in DEFAULTED:
            continue
        refused(lambda value=value: make(**(good(name) | {argument: value})), argument)


LAYERS = [name for name in PUBLIC if getattr(layers, name) in layers.CONDITIONAL_CLASSES.values()]
ROUTED = [name for name in PUBLIC if isinstance(getattr(layers, name), type) and name not in LAYERS]


def an_input(name: str) -> torch.Tensor:
    return torch.ones(2, 4) if name == "CondLinear" else torch.ones(2, 4, *(5,) * int(name[-2]))


@pytest.mark.parametrize("name", LAYERS)
def test_calls_of_layers(name: str) -> None:
    layer = getattr(layers, name)(**good(name))
    x = an_input(name)
    for value in WRONG["x"]:
        refused(lambda value=value: layer(value), "x")
    for value in WRONG["routing_weights"]:
        wrong = (value,) if isinstance(value, list) else value  # sizes in this place are an output's
        refused(lambda wrong=wrong: layer(x, wrong), None)
        refused(lambda value=value: layer.to_static(value), "routing_weights")
    if "Transpose" in name:
        for size in (1, (99,), "big", (9.5,) * 3, torch.ones(2)):
            refused(lambda size=size: layer(x, output_size=size), "output_size")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_made_of_static_ones(name: str) -> None:
    kind: type[ConditionalLayer] = getattr(layers, name)
    static = kind.static_type(4, 6) if kind is CondLinear else kind.static_type(4, 6, 3)
    for argument in inspect.signature(kind.from_static).parameters:
        for value in (each for each in WRONG[argument] if each is not None or argument not in DEFAULTED):
            changed = {"static": static} | {argument: value}
            refused(lambda changed=changed: kind.from_static(**changed), argument)


@pytest.mark.parametrize("name", ROUTED)
def test_calls_of_routing_functions(name: str) -> None:
    routing = getattr(layers, name)(**good(name))
    for value in WRONG["x"]:
        refused(lambda value=value: routing(value), "routing_weights" if name == "ExternalRouting" else "x")


def test_what_is_handed_over() -> None:
    for value in WRONG["previous"]:
        refused(lambda value=value: HierarchicalRouting(4, 3)(torch.ones(2, 4), value), "previous")
    refused(lambda: HierarchicalRouting(4, 3, previous_experts=2)(torch.ones(2, 4)), "previous")


def test_slots() -> None:
    block = nn.Identity()
    layer = CondConv2d(4, 6, 3, num_experts=3)
    routed = layers.route_block_(block, SigmoidRouting(4, 3), [layer])
    refused(lambda: layer(torch.ones(2, 4, 5, 5)), "routing_weights")
    refused(lambda: routed.slot.start_constant_(), "start")
    refused(lambda: routed.slot._replicate_for_data_parallel(), "module")
    refused(lambda: block([torch.ones(2, 4)]), "x")


def test_padding_no_static_layer_has() -> None:
    layer = layers.CondConv1d(4, 6, 3, 2, "tf_same", num_experts=3)
    refused(lambda: layer.to_static(torch.ones(3)), "padding")


def test_options_in_text_are_checked_as_others() -> None:
    for text, argument in (
        ("softmax(temperature='hot')", "temperature"),
        ("softmax(temperature=[1])", "temperature"),
        ("top_k(k='2')", "k"),
        ("top_k(k=4)", "k"),
        ("hidden(hidden_ratio=None)", "hidden_ratio"),
        ("constant(weights='even')", "weights"),
        ("sigmoid(expert_dropout='half')", "expert_dropout"),
        ("sigmoid(" + "x" * 9999 + "=1)", "routing"),
        ("sigmoid(x" + "y" * 900 + "=1)", "routing"),
    ):
        refused(lambda text=text: CondConv2d(4, 6, 3, num_experts=3, routing=text), argument)


def test_all_names_have_rows() -> None:
    assert set(NOTHING_TO_CHECK) <= set(layers.__all__)
    assert {argument for _, argument in CASES} <= set(WRONG) | {argument for _, argument in SPECIAL}
