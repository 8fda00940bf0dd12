"""Checkpoints that cannot be experts, and networks that cannot take them: refused before anything is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import UsageError
from condconv.nn import ConditionalLayer, ConstantRouting

from .networks import assert_unchanged, copy_of
from .snapshot_runs import IMAGE, conditional_net, runs, save, small_net


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = save(runs(3), tmp_path)
    model = conditional_net(2, bias=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="one static network's file for each expert, got 3 for 2 experts"):
        condconv.load_pretrained(model, paths)
    with pytest.raises(ValueError, match="got 3 for a network without experts|got a network without experts"):
        condconv.load_pretrained(small_net(), paths)
    torch.save(model.state_dict(), tmp_path / "conditional.pth")
    with pytest.raises(ValueError, match="must hold static networks, got .*conditional.pth', which has experts for 3"):
        condconv.load_pretrained(model, [paths[0], tmp_path / "conditional.pth"])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert any(isinstance(module, ConditionalLayer) for module in model.modules())


def test_norms_that_cannot_hold_the_average_are_refused_before_anything_changes(tmp_path: Path) -> None:
    nets = runs(2)
    model = conditional_net(2, bias=False)
    model[4] = nn.BatchNorm2d(8, affine=False).double()
    for net in nets:
        net[4] = nn.BatchNorm2d(8, affine=False).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="must have batch norms with scale, shift and running statistics, got Batch"):
        condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_what_cannot_be_kept_is_refused_before_anything_changes(tmp_path: Path) -> None:
    """A norm moves into the experts before it, and a bias becomes those of the experts."""
    paths = save(runs(2, bias=True), tmp_path)
    model = conditional_net(2, bias=True)
    before = copy_of(model)
    for pattern, kept in (
        ("4.*", "4.weight without 3"),
        ("7.running_var", "7.running_var without 6"),
        ("6.bias", "6.bias"),
    ):
        with pytest.raises(UsageError, match=f"must leave a layer and the batch norm after it together, got {kept}"):
            condconv.load_pretrained(model, paths, example_input=IMAGE, skip=pattern)
    state = torch.load(paths[1])
    torch.save({f"10.{name}": value for name, value in state.items()}, paths[1])
    with pytest.raises(UsageError, match=r"`skip` must leave out the same of all checkpoints, got 0.weight of some of"):
        condconv.load_pretrained(model, paths, example_input=IMAGE, skip="10.*")  # the classifier, and the whole file
    assert_unchanged(model, before)
    torch.save(state, paths[1])
    for pattern in (["3.*", "4.*"], "10.*", "0.weight"):
        model = conditional_net(2, bias=True)
        before = copy_of(model)
        report = condconv.load_pretrained(model, paths, example_input=IMAGE, skip=pattern)
        assert report.skipped
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.skipped)


def test_a_routing_that_adds_up_to_nothing_changes_nothing(tmp_path: Path) -> None:
    paths = save(runs(2), tmp_path)
    model = conditional_net(2, bias=False, weights=[1.0, -1.0 + 1e-3])
    for module in model.modules():
        if isinstance(module, ConstantRouting):
            module.weights[1] = -1.0
    before = copy_of(model)
    with pytest.raises(UsageError, match="can start evenly, got ConstantRouting for 3, which has one kernel in the so"):
        condconv.load_pretrained(model, paths, example_input=IMAGE)
    assert_unchanged(model, before)


def test_norms_that_share_a_parameter_are_refused(tmp_path: Path) -> None:
    """The average of one layer would be another's, too."""
    nets = runs(2)
    model = conditional_net(2, bias=False)
    for net in (*nets, model):
        net[4].bias = net[1].bias
    before = copy_of(model)
    with pytest.raises(UsageError, match="must have batch norms of their own, got 4, which shares a parameter"):
        condconv.load_pretrained(model, save(nets, tmp_path), example_input=IMAGE)
    assert_unchanged(model, before)
