"""An optimizer that is built before the conversion holds the new parameters after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam

from condconv import Scope, convert_
from condconv.errors import UsageError

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(8))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(IMAGES).square().sum().backward()
    optimizer.step()


def in_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    found = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[found[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def test_groups_and_state() -> None:
    model = Net()
    decayed = [each for each in model.parameters() if each.dim() > 1]
    others = [each for each in model.parameters() if each.dim() == 1]
    optimizer = Adam([{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.5}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step(model, optimizer)
    head = optimizer.state[model.head.weight]["exp_avg"].clone()

    report = convert_(model, 3, layers="body.*", example_input=IMAGES, optimizer=optimizer)

    assert report.notes == ("optimizer: 2 parameters exchanged, 2 of routings added",)
    routing = ["body.0.routing_fn.fc.weight", "body.0.routing_fn.fc.bias"]
    assert in_groups(model, optimizer) == [
        ["stem.weight", "body.0.experts.weight", "head.weight", *routing],
        ["stem.bias", "body.0.experts.bias", "head.bias"],
    ]
    assert len(optimizer.state) == 4
    assert torch.equal(optimizer.state[model.head.weight]["exp_avg"], head)
    before = [each.detach().clone() for each in model.parameters()]
    step(model, optimizer)
    schedule.step()
    assert not any(map(torch.equal, before, model.parameters()))
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    "scope", [Scope("network", blocks=lambda name, module: name == "0"), "layer"], ids=["network", "layer"]
)
def test_several_optimizers_and_a_shared_routing(scope: Any) -> None:
    model = nn.Sequential(Net(), nn.Linear(2, 2))
    first, second = SGD(model[0].stem.parameters()), Adam([*model[0].body.parameters(), *model[1].parameters()])
    convert_(model, 2, scope=scope, example_input=IMAGES, optimizer=[first, second])
    held = [name for optimizer in (first, second) for group in in_groups(model, optimizer) for name in group]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters() if ".head." not in name)
    assert ("0.routing_fn.fc.weight" in in_groups(model, first)[0]) == (scope != "layer")


def test_names_of_parameters() -> None:
    model = Net()
    optimizer = SGD(model.named_parameters())
    convert_(model, 2, example_input=IMAGES, optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == in_groups(model, optimizer)[0]


def test_a_layer_that_is_not_trained_brings_no_routing() -> None:
    model = Net()
    optimizer = SGD(model.head.parameters())
    report = convert_(model, 2, layers="stem", example_input=IMAGES, optimizer=optimizer)
    assert in_groups(model, optimizer) == [["head.weight", "head.bias"]]
    assert report.notes == ("optimizer: 0 parameters exchanged, 0 of routings added",)


def test_an_optimizer_is_as_it_was_if_the_conversion_fails() -> None:
    model = Net()
    optimizer = Adam(model.parameters())
    step(model, optimizer)
    groups, state = in_groups(model, optimizer), dict(optimizer.state)
    model.register_forward_hook(lambda *arguments: 1 / int(type(model.stem) is nn.Conv2d))
    with pytest.raises(UsageError, match="must run as before with other layers"):
        convert_(model, 2, example_input=IMAGES, optimizer=optimizer)
    assert in_groups(model, optimizer) == groups
    assert dict(optimizer.state) == state


def test_an_optimizer_that_is_not_given_is_not_looked_for() -> None:
    model = Net()
    optimizer = SGD(model.parameters())
    convert_(model, 2, example_input=IMAGES)
    assert len(optimizer.param_groups[0]["params"]) == 6


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("sgd", "`optimizer` must be a torch.optim.Optimizer or several, got 'sgd': give the one that holds"),
        (SGD(nn.Linear(2, 2).parameters()), "`optimizer` must hold parameters of the model, got a SGD without any"),
        (
            LBFGS(nn.Linear(2, 2).parameters()),
            "must keep its state parameter by parameter, got an LBFGS, .* build it a",
        ),
    ],
    ids=["text", "of another model", "state of all together"],
)
def test_wrong_optimizers(optimizer: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert_(Net(), 2, example_input=IMAGES, optimizer=optimizer)
