"""Routing with more parts than weights of experts: what is shown, what is changed, what a static layer gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.analysis import RoutingRecorder, RoutingReport, headline, measure_interventions
from condconv.convert import make_static_


def recorded(method: str, num_experts: int) -> tuple[nn.Module, Tensor, RoutingReport]:
    """Return a network whose routing varies, images, and its report."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    images = torch.randn(8, 3, 7, 7) + torch.randn(8, 3, 1, 1)
    condconv.convert_(net, num_experts, method=method, layers="0", example_input=images)
    for name, parameter in net.named_parameters():
        if "routing_fn" in name:
            nn.init.normal_(parameter)
    with RoutingRecorder(net, ["a", "b", "c", "d"]) as recorder, torch.inference_mode():
        net(images)
        recorder.update(torch.arange(8) % 4)
    return net, images, recorder.report()


@pytest.mark.parametrize(("method", "num_experts"), [("odconv", 4), ("odconv", 1), ("dcd", 1), ("se", 1)])
def test_weights_of_experts_are_shown_and_all_parts_are_averaged(method: str, num_experts: int) -> None:
    net, images, report = recorded(method, num_experts)
    vectors, (record,) = net[0].routing_fn(images).detach().double(), report.routings
    assert record.num_experts == num_experts
    expected = torch.ones(1, dtype=torch.float64) if num_experts == 1 else vectors[:, :num_experts].mean(0)
    torch.testing.assert_close(record.mean, expected)
    torch.testing.assert_close(record.mean_vector, vectors.mean(0))
    if num_experts == 1:
        assert headline(report).startswith("Each layer has one kernel, which routing modulates.")


def test_a_layer_with_all_its_mean_gains_is_what_the_intervention_measures() -> None:
    net, images, report = recorded("odconv", 4)
    targets = net(images).argmax(1)
    measured = {
        each.name: each for each in measure_interventions(net, [(images, targets)], report) if not each.routings
    }
    assert measured["learned"].agree == 8
    make_static_(net, {"0": report.routing("0").mean_vector})
    assert measured["mean"].agree == int((net(images).argmax(1) == targets).sum())


def test_the_largest_weights_are_kept_without_touching_the_gains() -> None:
    net, images, report = recorded("odconv", 4)
    with torch.no_grad():  # one kernel has nearly all the weight: keeping it alone changes hardly anything
        net[0].routing_fn.fc.weight.zero_()
        net[0].routing_fn.fc.bias.copy_(torch.tensor([3000.0, 0, 0, 0]))
    targets = net(images).argmax(1)
    measured = {
        each.name: each for each in measure_interventions(net, [(images, targets)], report) if not each.routings
    }
    assert measured["top-1"].agree == 8


def test_a_report_with_parts_is_saved(tmp_path) -> None:
    _, _, report = recorded("dcd", 1)
    report.save(tmp_path / "r.json")
    again = RoutingReport.load(tmp_path / "r.json")
    torch.testing.assert_close(again.routings[0].mean_vector, report.routings[0].mean_vector)
