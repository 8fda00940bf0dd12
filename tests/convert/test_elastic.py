"""Members of an elastic network: what they cost, and what is left of the network for one of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import condconv
from condconv.convert import estimate_statistics_, keep_member_, members, set_budget_
from condconv.errors import UsageError
from condconv.nn.conditional import conditional_layers

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(number: int | None = 3, scope: str = "block") -> nn.Module:
    torch.manual_seed(0)
    if number is None:
        return condconv.create_model("small_separable_025", num_classes=4).eval()
    options = {"scope": scope, "experts": "deltas", "routing": "sigmoid(standardize=True)"}
    model = condconv.create_model(f"small_separable_cc_025_{number}e", num_classes=4, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "routing_fn.fc" in name:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("scope", ["layer", "block"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_the_cut_network_is_the_member_and_has_the_tensors_of_a_network_built_so(scope: str, number: int) -> None:
    model = network(scope=scope)
    cut = copy.deepcopy(model)
    keep_member_(cut, number)
    chosen = set_budget_(model, number, example_input=X)
    torch.testing.assert_close(cut(X), model(X))
    built = network(number or None, scope)
    assert {name: each.shape for name, each in cut.state_dict().items()} == {
        name: each.shape for name, each in built.state_dict().items()
    }
    assert chosen.params == sum(each.numel() for each in built.parameters())
    assert chosen.madds == condconv.count(built, X).total.madds
    built.load_state_dict(cut.state_dict())
    torch.testing.assert_close(built(X), cut(X))


def test_a_budget_of_bytes_or_multiply_adds() -> None:
    model = network()
    found = members(model, X)
    assert [(each.number, each.unit) for each in found] == [(number, "experts") for number in range(4)]
    assert list(found) == sorted(found, key=lambda each: (each.bytes, each.madds))
    assert set_budget_(model, max_bytes=found[2].bytes, example_input=X) == found[2]
    assert set_budget_(model, max_bytes=found[2].bytes - 1, example_input=X) == found[1]
    assert set_budget_(model, max_madds=found[0].madds, example_input=X) == found[0]
    assert set_budget_(model, 3, example_input=X) == found[3]
    with pytest.raises(UsageError, match="`max_bytes` must leave a member, got .* the smallest has 0 experts"):
        set_budget_(model, max_bytes=1, example_input=X)
    with pytest.raises(UsageError, match="`num_experts` must be given, or `max_bytes` or `max_madds`, got None: give"):
        set_budget_(model)
    with pytest.raises(UsageError, match="`number` must be a whole number of experts from 0 to 3, got 4: 0 is the"):
        keep_member_(model, 4)


def test_numbers_of_numpy_are_whole_numbers() -> None:
    model = network()
    held = members(model, X)[2].bytes
    assert set_budget_(model, np.int64(2), example_input=X).number == 2
    assert set_budget_(model, max_bytes=np.int32(held), max_madds=2**40, example_input=X).number == 2
    keep_member_(model, np.uint8(1))
    assert {layer.num_experts for layer in conditional_layers(model).values()} == {1}
    for wrong in (True, -1, 1.0, np.float32(1), "1", np.int64(-1)):
        with pytest.raises(UsageError, match="`num_experts` must be a whole number of at least 0, got .*: give a"):
            set_budget_(model, wrong, example_input=X)
        with pytest.raises(UsageError, match="`number` must be a whole number of experts from 0 to 1, got .*: 0 is"):
            keep_member_(model, wrong)


def ranked(experts: str, scope: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"scope": scope, "experts": experts, "routing": "softmax"}
    model = condconv.create_model("small_separable_cc_025_3e", num_classes=4, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "routing_fn" in name:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("scope", ["layer", "block"])
def test_members_by_rank_are_the_networks_built_so(scope: str) -> None:
    model = ranked("shared(rank=3)", scope)
    found = members(model, X)
    assert [(each.number, each.unit) for each in found] == [(number, "ranks") for number in range(4)]
    assert list(found) == sorted(found, key=lambda each: (each.bytes, each.madds))
    for member in found:
        cut = copy.deepcopy(model)
        keep_member_(cut, member.number)
        assert set_budget_(model, rank=member.number, example_input=X) == member
        torch.testing.assert_close(cut(X), model(X))
        built = ranked(f"shared(rank={member.number})", scope) if member.number else network(None)
        assert {name: each.shape for name, each in cut.state_dict().items()} == {
            name: each.shape for name, each in built.state_dict().items()
        }
        assert member.params == sum(each.numel() for each in built.parameters())
        assert member.madds == condconv.count(built, X).total.madds
        built.load_state_dict(cut.state_dict())
        torch.testing.assert_close(built(X), cut(X))
    assert set_budget_(model, max_bytes=found[2].bytes, example_input=X) == found[2]
    with pytest.raises(
        UsageError, match="`num_experts` must be None for a network whose members have fewer ranks, got 1"
    ):
        set_budget_(model, 1, example_input=X)
    with pytest.raises(
        UsageError, match="`rank` must be None for a network whose members have fewer experts, got 1: give"
    ):
        set_budget_(network(), rank=1, example_input=X)
    with pytest.raises(UsageError, match="`rank` must be given, or `max_bytes` or `max_madds`, got None: give one"):
        set_budget_(model, example_input=X)


def test_statistics_are_as_they_were_after_an_error() -> None:
    def breaking():
        yield X
        raise OSError("gone")

    model = nn.Sequential(nn.BatchNorm2d(3))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(OSError, match="gone"):
        estimate_statistics_(model, breaking())
    with pytest.raises(UsageError, match="`loader` must give finite statistics of batch norms, got inf or nan: leave"):
        estimate_statistics_(model, [X, X * torch.nan])
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_statistics_are_the_average_over_batches_and_nothing_else_changes() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Dropout(0.5))
    model[1].eval()
    batches = [(X[:2], "labels"), (X[2:], "labels")]
    estimate_statistics_(model, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([each.mean((0, 2, 3)) for each, _ in batches]).mean(0))
    assert (norm.training, norm.momentum, model.training, model[1].training) == (True, 0.1, True, False)
    elastic = network()
    before = {name: each.clone() for name, each in elastic.state_dict().items()}
    set_budget_(elastic, 1, example_input=X, loader=[X])
    changed = {name for name, each in elastic.state_dict().items() if not torch.equal(each, before[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)
