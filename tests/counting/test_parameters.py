"""The number of parameters, also of layers that share some."""

from __future__ import annotations

import torch
from torch import nn

from condconv import CondConv2d, count
from condconv.counting.parameters import count_parameters
from condconv.nn.conditional import own_parameters


def test_a_shared_parameter_counts_once_in_a_model_and_in_each_of_its_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    assert count_parameters(model.parameters()) == 15 + 5
    assert count_parameters(each for layer in model for each in layer.parameters()) == 15 + 5
    assert [count_parameters(layer.parameters()) for layer in model] == [15, 15 + 5]
    assert count_parameters([]) == 0


def test_a_report_counts_a_shared_parameter_once_in_all() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    report = count(model, torch.zeros(1, 4))
    assert [each.params for each in (*report.layers, report.total)] == [16, 16 + 4, 0, 16 + 4]


def test_experts_belong_to_their_layer_and_routing_does_not() -> None:
    layer = CondConv2d(2, 3, 1, num_experts=4)
    experts = 4 * (2 * 3 + 3)
    assert count_parameters(own_parameters(layer)) == experts
    assert count_parameters(layer.parameters()) == experts + 4 * (2 + 1)  # and the linear layer of its routing
