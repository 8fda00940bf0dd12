"""The trunk of routing functions, and heads for more parts than one weight per expert."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.export.routers import Router4d
from condconv.nn import ROUTING, Part, RoutingFunction, SoftmaxRouting, TopKRouting, make_routing

PARTS = (Part("experts", 3), Part("outputs", 5, "gain"), Part("core", 4, "linear"))
ROUTED = [name for name in ROUTING if name not in ("external", "constant", "hierarchical")]


def test_a_hidden_layer_under_a_softmax_by_hand() -> None:
    routing = make_routing("softmax(hidden_ratio=1/2, temperature=2)", 4, 2)
    with torch.no_grad():
        routing.hidden.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0]]))
        routing.fc.weight.copy_(torch.tensor([[2 * math.log(3), 9.0], [0.0, 0.0]]))
    # Hidden relu(1) = 1 and relu(-1) = 0; scores 2 ln 3 and 0, halved by the temperature: odds 3 to 1
    torch.testing.assert_close(routing(torch.ones(1, 4, 2, 2)), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize(("options", "units"), [("hidden_ratio=1/16", 2), ("hidden_ratio=1/16, least_hidden=16", 16)])
def test_the_fewest_hidden_units(options: str, units: int) -> None:
    assert make_routing(f"sigmoid({options})", 32, 3).hidden.out_features == units


@pytest.mark.parametrize("options", ["hidden_ratio=1e308", "hidden_ratio=1e9", "hidden_ratio=1, least_hidden=70000"])
@pytest.mark.parametrize("name", ["sigmoid", "hidden"])
def test_the_most_hidden_units(name: str, options: str) -> None:
    rule = "`hidden_ratio` and `least_hidden` must give at most 65,536 hidden units, got .* for 32 channels: give a"
    with pytest.raises(UsageError, match=rule):
        make_routing(f"{name}({options})", 32, 3)


def test_the_most_previous_experts() -> None:
    with pytest.raises(UsageError, match="`previous_experts` must be at most 4096, got 1000000000: it is the number"):
        make_routing("hierarchical(previous_experts=1000000000)", 32, 3)


def test_parts_by_hand() -> None:
    routing = SoftmaxRouting(1, 3, parts=PARTS)
    with torch.no_grad():
        routing.heads.linear.weight.fill_(math.log(3))
    weights = routing(torch.ones(2, 1, 4, 4))
    assert weights.shape == (2, 12)
    torch.testing.assert_close(weights[:, :3].sum(1), torch.ones(2))
    torch.testing.assert_close(weights[:, 3:8], torch.full((2, 5), 1.5))  # twice a sigmoid of ln 3, 3/4
    torch.testing.assert_close(weights[:, 8:], torch.full((2, 4), math.log(3)))


@pytest.mark.parametrize("name", [*ROUTED, "constant", "external"])
@pytest.mark.parametrize("parts", [PARTS, PARTS[1:]], ids=["experts", "no experts"])
def test_a_constant_start_has_gains_of_one(name: str, parts: tuple[Part, ...]) -> None:
    num_experts = 3 if parts == PARTS else 1
    options = {"k": 1} if name == "top_k" else {}
    routing = make_routing(name, 4, num_experts, parts=parts, **options)
    start = routing.start_constant_()
    assert start.shape == (sum(part.size for part in parts),)
    torch.testing.assert_close(start[-9:].tolist(), [1.0] * 5 + [0.0] * 4)
    if name != "external":
        torch.testing.assert_close(routing(torch.randn(2, 4, 3, 3)), start.float().expand(2, -1))


@pytest.mark.parametrize("name", ROUTED)
def test_parts_in_four_dimensions(name: str) -> None:
    torch.manual_seed(0)
    routing = make_routing(name, 8, 3, parts=PARTS, hidden_ratio=1 / 2).eval()
    x = torch.randn(2, 8, 5, 4)
    expected: Tensor = routing(x)
    torch.testing.assert_close(Router4d(routing)(x), expected)


def test_experts_are_dropped_and_other_parts_are_not() -> None:
    routing = make_routing("sigmoid", 4, 3, parts=PARTS, expert_dropout=0.5)
    weights = routing(torch.randn(64, 4, 2, 2))
    assert (weights[:, :3] == 0).any()
    assert not (weights[:, 3:] == 0).any()


def test_a_routing_function_of_ones_own_gets_heads() -> None:
    class Largest(RoutingFunction):
        def weigh(self, code: Tensor) -> Tensor:
            return nn.functional.one_hot(code[:, :3].argmax(1), 3).to(code.dtype)

    weights = Largest(4, 3, parts=PARTS)(torch.randn(2, 4, 3, 3))
    assert weights.shape == (2, 12)
    assert weights[:, :3].sum(1).tolist() == [1, 1]


def test_what_has_no_trunk() -> None:
    with pytest.raises(UsageError, match="`hidden_ratio` must be None for ConstantRouting, which has no hidden layer"):
        make_routing("constant(hidden_ratio=1/4)", 4, 3)
    with pytest.raises(UsageError, match="`routing` must not be hierarchical for experts that want more than one"):
        make_routing("hierarchical", 4, 3, parts=PARTS)
    assert isinstance(make_routing("top_k(k=1)", 4, 3, parts=PARTS), TopKRouting)
