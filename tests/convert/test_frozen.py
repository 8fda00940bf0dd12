"""Frozen layers: their routing is frozen too, so that they compute what they did while others learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv1d, CondConv2d, CondConvTranspose2d, CondLinear, convert_, select
from condconv.nn import HierarchicalRouting, SigmoidRouting

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(8))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 1)
        self.conv2 = nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.tanh(self.conv1(x)))


class Net(nn.Module):
    """A body to be frozen, and a head that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), Block())
        self.head = nn.Sequential(Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("init", ["same_output", "random"])
@pytest.mark.parametrize("scope", ["layer", "block", "block(every=2)"])
@pytest.mark.parametrize("routing", ["sigmoid", "softmax(temperature=3)", "hidden", "top_k", SigmoidRouting])
def test_what_is_frozen_stays(routing: Any, scope: str, init: str) -> None:
    torch.manual_seed(0)
    model = Net()
    model.body.requires_grad_(False)
    report = convert_(model, 3, routing=routing, scope=scope, init=init, example_input=IMAGES)
    assert report.notes == ("frozen, and so is their routing: body.0.conv1, body.0.conv2, body.1.conv1, body.1.conv2",)
    before = model.body(IMAGES)
    head = model.head(IMAGES)
    train(model)
    torch.testing.assert_close(model.body(IMAGES), before, rtol=0, atol=0)
    assert not torch.allclose(model.head(IMAGES), head)
    assert any(each.requires_grad for name, each in model.named_parameters() if "head" in name and "routing" in name)


def test_a_frozen_network_that_shares_one_routing() -> None:
    model = Net().requires_grad_(False)
    convert_(model, 2, scope="network", routing=SigmoidRouting(3, 2), example_input=IMAGES)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_chain_is_frozen_block_by_block() -> None:
    model = Net()
    model.body[0].requires_grad_(False)
    convert_(model, 2, scope="block", routing=HierarchicalRouting, example_input=IMAGES)
    frozen = [not block.routing_fn.fc.weight.requires_grad for block in (*model.body, *model.head)]
    assert frozen == [True, False, False]


@pytest.mark.parametrize("scope", ["block", "network"])
def test_a_frozen_layer_routed_with_layers_that_learn_is_named(scope: str) -> None:
    model = Net()
    model.body[1].conv1.requires_grad_(False)
    report = convert_(model, 2, scope=scope, example_input=IMAGES)
    assert report.notes == (
        "frozen, but what they compute will change, since their routing learns with other layers: body.1.conv1; leave "
        "them out by `skip`, or take scope='layer'",
    )
    assert all(each.requires_grad for name, each in model.named_parameters() if "routing_fn" in name)


@pytest.mark.parametrize(
    ("conditional", "static"),
    [
        (CondConv2d, nn.Conv2d(3, 4, 3)),
        (CondConv1d, nn.Conv1d(1, 64, 16, 8)),  # a fixed transform of sound
        (CondConvTranspose2d, nn.ConvTranspose2d(3, 4, 2)),
        (CondLinear, nn.Linear(3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_layer(conditional: Any, static: nn.Module) -> None:
    assert all(each.requires_grad for each in conditional.from_static(static, 2).parameters())
    static.requires_grad_(False)
    assert not any(each.requires_grad for each in conditional.from_static(static, 2).parameters())


def test_a_bias_may_learn_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].weight.requires_grad_(False)
    convert_(model, 2, layers=select.convs(), example_input=IMAGES)
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["0.experts.bias"]
