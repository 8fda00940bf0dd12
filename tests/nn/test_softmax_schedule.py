"""A temperature that stays where it starts, since a training loop does not know of it, is reported."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from condconv.nn import SoftmaxRouting, anneal_


def make() -> nn.Module:
    return nn.Sequential(SoftmaxRouting(3, 2, temperature=20.0, final_temperature=1.0, annealing_steps=50))


def train(model: nn.Module, steps: int, anneal: bool = False) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        model(torch.randn(4, 3, 5, 5))[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if anneal:
            anneal_(model)


def test_a_schedule_that_is_forgotten_warns_once() -> None:
    model = make()
    train(model, 12)
    with pytest.warns(UserWarning, match=r"trained at its first temperature, 20: .* condconv.nn.anneal_\(model\)"):
        model.eval()
    train(model, 12)
    model.eval()  # warnings are errors here


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("options", [{}, {"foreach": True}])
def test_other_optimizers_are_seen(optimizer: type[torch.optim.Optimizer], options: dict[str, bool]) -> None:
    model = make()
    updates = optimizer(model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    model.train()
    for _ in range(12):
        model(torch.randn(4, 3, 5, 5))[:, 0].sum().backward()
        updates.step()
    with pytest.warns(UserWarning, match="first temperature"):
        model.eval()


def test_nothing_is_said_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        annealed, loaded, frozen = make(), make(), make()
        constant = nn.Sequential(SoftmaxRouting(3, 2, temperature=9.0))
        train(annealed, 12, anneal=True)
        train(constant, 12)
        loaded.train().load_state_dict(make().state_dict())
        train(frozen.requires_grad_(False).append(nn.Linear(2, 2)), 12)
        for model in (make(), annealed, constant, loaded, frozen, copy.deepcopy(annealed)):
            model.eval()
            model.train()
            model.eval()
        with torch.device("meta"):
            make().train().eval()


def test_repr_says_where_the_schedule_stands() -> None:
    model = make()
    anneal_(model, 10)
    assert "temperature=16.2, to 1 in 50 calls of anneal_, 10 done" in repr(model)
    assert repr(SoftmaxRouting(3, 2, temperature=4.0)).count("temperature=4") == 1
    assert "calls" not in repr(SoftmaxRouting(3, 2))
    with torch.device("meta"):
        repr(make())
