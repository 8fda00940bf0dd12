"""What the routing of a network learned, in numbers, states and sentences."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from condconv.analysis import Intervention, RoutingReport, headline, summarize
from condconv.analysis.statistics import leeway, mean_similarity
from condconv.analysis.summary import STATES
from condconv.nn import CondLinear, ConstantRouting
from tests.analysis.samples import FirstTwo, layer, recorded

APART = ((1.0, 0.0), (0.0, 1.0))
COPIES = ((1.0, 0.5), (2.0, 1.1))
FORTH_AND_BACK = ((0.4, 0.6), (0.6, 0.4))


def report(weights, kernels=APART) -> RoutingReport:
    """The report of a layer that gives its images these weights."""
    network = nn.Sequential(layer())
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor(kernels)[:, None].expand(2, 2, 2))
    return recorded(network, torch.tensor(weights))


def together(*reports: RoutingReport) -> RoutingReport:
    return RoutingReport(tuple(replace(each.routings[0], name=f"layer{index}") for index, each in enumerate(reports)))


def test_the_numbers_are_those_worked_by_hand():
    found = summarize(report(FORTH_AND_BACK))
    assert found is not None
    assert found.variation == pytest.approx((0.01 / 0.26) ** 0.5)  # variance over mean square
    assert found.experts_in_use == pytest.approx(2)
    assert (found.num_experts, found.similarity, found.routings) == (2, 0, 1)
    assert found.kernel_variation == pytest.approx(found.variation)  # of experts at right angles
    assert found.numbers == (
        "weights vary by 20 % over images, kernels by 19.6 %, 2.0 of 2 experts in use, "
        "their similarity 0.00 (1 = identical)"
    )


@pytest.mark.parametrize(
    ("weights", "kernels", "state"),
    [
        (FORTH_AND_BACK, APART, "varied"),
        (((0.5, 0.5), (0.5, 0.5)), APART, "same weights"),
        (((0.50, 0.50), (0.52, 0.48)), APART, "same weights"),
        (((0.50, 0.50), (0.58, 0.42)), APART, "varied"),
        (((3.0, 2.0), (3.0, 2.0)), APART, "same weights"),  # no sigmoid's: there are no ends to be stuck at
        (((0.99, 0.98), (0.98, 0.99)), APART, "stuck"),
        (((0.02, 0.03), (0.02, 0.03)), APART, "stuck"),
        (((0.95, 0.01), (0.99, 0.05)), APART, "one expert"),
        (((0.99, 0.0), (0.0, 0.98)), APART, "varied"),  # at the ends, but it depends on the image at which
        (FORTH_AND_BACK, COPIES, "alike"),
        (FORTH_AND_BACK, ((1.0, 1.0), (1.0, 0.0)), "varied"),
    ],
)
def test_each_state_is_found(weights, kernels, state):
    found = summarize(report(weights, kernels))
    assert found is not None
    assert (found.state, found.affected) == (state, ("0.routing_fn",))
    assert headline(report(weights, kernels)) == f"{STATES[state].capitalize()}: {found.numbers}."


def test_a_state_counts_if_more_than_half_gain_nothing():
    good, same, stuck = report(FORTH_AND_BACK), report([[0.5, 0.5]]), report([[0.99, 0.99]])
    assert summarize(together(good, good, same, stuck)).state == "varied"
    found = summarize(together(good, good, same, stuck, same))
    assert (found.state, found.affected, found.routings) == ("same weights", ("layer2", "layer4"), 5)
    assert found.finding.endswith("routing weights hardly differ (in 2 of 5 routing functions)")
    assert "(in" not in summarize(together(good, same)).finding


def test_equal_weights_of_a_softmax_are_in_the_middle_and_not_stuck():
    for experts in (2, 8, 100):
        weights = torch.full((3, experts), 1 / experts, dtype=torch.float64)
        assert leeway(torch.tensor(3), weights.sum(0), weights.square().sum(0)) == pytest.approx(1)
    half = torch.full((3, 8), 0.5, dtype=torch.float64)
    assert leeway(torch.tensor(3), half.sum(0), half.square().sum(0)) == pytest.approx(1)


def test_the_similarity_is_the_mean_over_pairs():
    similarity = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, -0.2], [0.0, -0.2, 0.0]])
    assert mean_similarity(similarity) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(CondLinear(2, 2, num_experts=2, routing=ConstantRouting(2, 2))),
        nn.Sequential(CondLinear(2, 2, num_experts=1)),
    ],
)
def test_what_is_constant_by_choice_is_said_so(network):
    made = recorded(network, torch.rand(4, 2))
    assert summarize(made) is None
    assert (
        headline(made) == "All images get the same kernels: the routing is constant by choice, or there is one expert."
    )


def test_constant_layers_do_not_count():
    network = nn.Sequential(CondLinear(2, 2, num_experts=2, routing=ConstantRouting(2, 2)), layer(FirstTwo()))
    found = summarize(recorded(network, torch.rand(4, 2)))
    assert found is not None
    assert found.routings == 1


@pytest.mark.parametrize(
    ("mean", "text"),
    [
        (Intervention("mean", (), 1000, 950, 900, 10, 40), "accuracy falls by 3.00 ± 0.71 points."),
        (Intervention("mean", (), 1000, 950, 900, 40, 10), "accuracy rises by 3.00 ± 0.71 points."),
        (Intervention("mean", (), 1000, 950, 900, 10, 12), "accuracy is the same within error (-0.20 ± 0.47)."),
        (Intervention("mean", (), 1000, 950), "5.00 ± 0.71 % of the predictions change."),
    ],
)
def test_the_headline_says_what_routing_is_worth(mean, text):
    one_layer = replace(mean, routings=("0.routing_fn",), gained=999)
    measured = replace(report(FORTH_AND_BACK), interventions=(one_layer, mean))
    assert headline(measured).endswith(f"(1 = identical). With the same weights for every image, {text}")
