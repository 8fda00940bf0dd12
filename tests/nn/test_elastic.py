"""Networks that compute with their first experts or ranks, in training too."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import condconv
from condconv.errors import UsageError
from condconv.nn.elastic import Units, activate_, elastic_units, sandwich, smaller_member


def network(scope: str = "block", experts: str = "deltas", routing: str = "sigmoid(standardize=True)") -> nn.Module:
    torch.manual_seed(0)
    model = condconv.create_model(
        "small_separable_cc_025_3e", num_classes=4, scope=scope, experts=experts, routing=routing
    )
    with torch.no_grad():  # routing that depends on the image
        for name, parameter in model.named_parameters():
            if "routing_fn.fc" in name:
                parameter.normal_()
    return model


@pytest.mark.parametrize("scope", ["layer", "block"])
def test_a_smaller_member_learns_alone_and_leaves_the_statistics(scope: str) -> None:
    model, x = network(scope).train(), torch.randn(8, 3, 16, 16)
    model(x)
    before = {name: each.clone() for name, each in model.named_buffers()}
    with smaller_member(model, 1):
        model(x).square().sum().backward()
    assert all(torch.equal(each, before[name]) for name, each in model.named_buffers())
    for name, parameter in model.named_parameters():
        if name.endswith("experts.weight"):
            assert parameter.grad is not None
            moves = parameter.grad.flatten(1).abs().sum(1) > 0
            assert moves.tolist() == [True, True, False, False], name
    assert all(module.training for module in model.modules())
    assert all(getattr(module, "active", None) is None for module in model.modules())
    model(x)
    assert not torch.equal(dict(model.named_buffers())["bn1.running_mean"], before["bn1.running_mean"])


def test_a_member_of_fewer_ranks_learns_alone_under_any_routing() -> None:
    model, x = network("block", "shared(rank=2)", "softmax").train(), torch.randn(8, 3, 16, 16)
    assert elastic_units(model) == Units("ranks", 2)
    model(x)
    before = {name: each.clone() for name, each in model.named_buffers()}
    with smaller_member(model, 1):
        model(x).square().sum().backward()
    assert all(torch.equal(each, before[name]) for name, each in model.named_buffers())
    ranks = [each for name, each in model.named_parameters() if name.endswith("mixing.down")]
    assert len(ranks) == 4
    for down in ranks:
        assert down.grad is not None
        assert (down.grad.abs().sum(1) > 0).tolist() == [True, False]
    assert all(getattr(module, "active", None) is None for module in model.modules())


@pytest.mark.parametrize(("experts", "numbers"), [("deltas", (0, 1, 2, 3)), ("shared(rank=2)", (0, 1, 2))])
def test_the_members_differ_and_the_smallest_is_not_routed(experts: str, numbers: tuple[int, ...]) -> None:
    model, x = network("layer", experts).eval(), torch.randn(2, 3, 16, 16)
    outputs = []
    for number in numbers:
        with smaller_member(model, number):
            outputs.append(model(x))
    torch.testing.assert_close(outputs[-1], model(x))
    for first, second in pairwise(outputs):
        assert (first - second).abs().max() > 1e-5
    for module in model.modules():
        if isinstance(module, condconv.nn.RoutingFunction):
            module.fc = None  # would fail if it were called
    activate_(model, 0)
    torch.testing.assert_close(model(x), outputs[0])


def test_activation_checkpointing_recomputes_the_same_member() -> None:
    model, x = network().train(), torch.randn(8, 3, 16, 16)
    gradients = []
    for run in (model, lambda each: checkpoint(model, each, use_reentrant=False)):
        model.zero_grad()
        with smaller_member(model, 1):
            output: Tensor = run(x)
            output.square().sum().backward()
        gradients.append([None if each.grad is None else each.grad.clone() for each in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("experts", ["deltas", "shared(rank=2)"])
def test_a_compiled_network_follows_its_budget(experts: str) -> None:
    model, x = network("layer", experts).eval(), torch.randn(2, 3, 16, 16)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for number in (None, 1, 0):
        activate_(model, number)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_sandwich_has_both_ends_and_two_between() -> None:
    torch.manual_seed(0)
    assert sandwich(1) == (1, 0)
    assert sandwich(2) == (2, 0, 1)
    steps = [sandwich(8) for _ in range(100)]
    assert all(step[:2] == (8, 0) and len(set(step)) == 4 for step in steps)
    assert {number for step in steps for number in step[2:]} == set(range(1, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3), "`model` must have conditional layers, got a network without: convert one"),
        (
            lambda: network(experts="dense"),
            "`experts` must be such that the first .* got DenseExperts in .*: each is a",
        ),
        (
            lambda: condconv.CondConv2d(3, 3, 1, num_experts=2, experts="modulated"),
            "got ModulatedExperts in .*: .* take experts='deltas' or 'shared'",
        ),
        (
            lambda: nn.Sequential(
                *(condconv.CondConv2d(3, 3, 1, num_experts=2, experts=each) for each in ("deltas", "shared"))
            ),
            "`model` must have layers that all have fewer experts or all fewer ranks, got experts, ranks: give all",
        ),
        (lambda: network(routing="softmax"), "`routing` must give each expert a weight of its own, got SoftmaxRouting"),
        (
            lambda: nn.Sequential(
                *(condconv.CondConv2d(3, 3, 1, num_experts=each, experts="deltas") for each in (2, 4))
            ),
            r"`model` must have one number of experts in all layers, got \[2, 4\]: convert all layers at once",
        ),
    ],
)
def test_networks_without_members(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        elastic_units(make())
