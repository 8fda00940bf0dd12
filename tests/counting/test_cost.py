"""Counting: numbers worked by hand, agreement with torch's counter, the paper's figures."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import condconv
from condconv import CondConv2d, CondConvTranspose2d, CondLinear, Scope, count
from condconv.counting.tracing import default_example
from condconv.nn import ConditionalLayer, SigmoidRouting
from tests.messages import assert_four_parts


def by_name(report: condconv.CostReport) -> dict[str, tuple[int, int, int, int]]:
    return {c.name: (c.params, c.madds, c.expert_bytes, c.kernel_bytes) for c in (*report.layers, report.total)}


def test_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        CondConv2d(4, 6, 1, num_experts=5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    costs = by_name(count(model, torch.zeros(2, 3, 9, 9)))
    assert costs["0"] == (108, 108 * 16, 0, 0)
    # 24 weights and 6 biases an expert: 16 pixels x 24, mixing 5 x 30; fp32
    assert costs["2"] == (150, 16 * 24 + 150, 600, 120)
    assert costs["2.routing_fn.fc"] == (25, 20, 0, 0)
    assert costs["5"] == (14, 12, 0, 0)
    assert costs["(other)"] == (8, 0, 0, 0)
    assert costs["total"] == (108 + 150 + 25 + 14 + 8, 1728 + 534 + 20 + 12, 600, 120)


def test_transposed_convolutions_apply_kernels_at_input_pixels() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 2, 2, bias=False), CondConvTranspose2d(4, 2, 2, 2, bias=False, num_experts=3)
    )
    costs = by_name(count(model, torch.zeros(1, 3, 5, 5)))
    assert costs["0"][1] == 48 * 25
    assert costs["1"][1] == 32 * 100 + 3 * 32


def test_linear_counts_rows() -> None:
    costs = by_name(count(nn.Sequential(CondLinear(4, 5, bias=False, num_experts=2)), torch.zeros(2, 7, 4)))
    assert costs["0"][1] == 7 * 20 + 2 * 20


def test_a_layer_called_twice_counts_twice_but_has_its_parameters_once() -> None:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    costs = by_name(count(nn.Sequential(conv, conv), torch.zeros(1, 4, 3, 3)))
    assert costs["0"] == (16, 2 * 16 * 9, 0, 0)
    assert costs["total"][0] == 16


def test_windows_folded_into_the_batch_belong_to_the_example() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x).unfold(2, 2, 2).unfold(3, 2, 2)  # [B, 4, 3, 3, 2, 2]
            return self.linear(y.permute(0, 2, 3, 4, 5, 1).reshape(-1, 4, 4))

    costs = by_name(count(Windows(), torch.zeros(2, 3, 6, 6)))
    assert costs["conv"][1] == 12 * 36
    assert costs["linear"][1] == 20 * 36


def test_half_precision_experts_have_half_the_bytes() -> None:
    costs = by_name(
        count(CondConv2d(4, 6, 1, bias=False, num_experts=5).bfloat16(), torch.zeros(1, 4, 3, 3).bfloat16())
    )
    assert costs["total"][2:] == (240, 48)


@pytest.mark.parametrize(
    ("scope", "routing"),
    [
        *product(("layer", "block", "network", Scope("block", every=2)), ("sigmoid", "softmax", "hidden")),
        ("block", "hierarchical"),
    ],
    ids=str,
)
def test_agrees_with_the_flop_counter(scope, routing: str) -> None:
    model = condconv.create_model(
        "mobilenet_v1_cc_025_4e", num_classes=10, output_stride=8, scope=scope, routing=routing
    )
    for layer in model.modules():
        if isinstance(layer, ConditionalLayer):
            layer.impl = "grouped"  # "auto" mixes outputs where that is cheaper than the convention
    x = torch.randn(3, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    assert counter.get_total_flops() == 2 * 3 * count(model, x).total.madds


def test_static_network_agrees_with_the_flop_counter() -> None:
    model = condconv.create_model("mobilenet_v1_050").eval()
    x = torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert counter.get_total_flops() == 2 * count(model, x).total.madds


def test_leaves_the_model_as_it_was() -> None:
    model = condconv.create_model("mobilenet_v1_cc_025_2e", output_stride=8)
    model.blocks[3].eval()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, torch.randn(1, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_table() -> None:
    text = str(count(nn.Sequential(nn.Conv2d(3, 8, 3)), torch.zeros(1, 3, 10, 10)))
    assert text.splitlines()[0].split() == ["layer", "kind", "params", "MADDs", "expert", "bytes", "kernel", "bytes"]
    assert text.splitlines()[2].split() == ["0", "Conv2d", "224", "13,824", "0", "0"]


def test_no_shape_to_guess() -> None:
    with pytest.raises(ValueError, match="`example_input` must be given, got None: Sequential has no convolution"):
        count(nn.Sequential(nn.Linear(3, 4)))


def test_several_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = CondConv2d(3, 4, 1, bias=False, num_experts=2, routing="external")

        def forward(self, x: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
            return self.layer(x, routing_weights)

    report = count(Two(), (torch.zeros(2, 3, 5, 5), torch.zeros(2, 2)))
    assert report.total.madds == 12 * 25 + 2 * 12


def test_router_of_a_block_is_counted_once() -> None:
    model = condconv.create_model("mobilenet_v1_cc_025_4e", output_stride=8)
    report = count(model, torch.zeros(1, 3, 32, 32))
    routers = [cost for cost in report.layers if cost.name.endswith("routing_fn.fc")]
    assert len(routers) == 8 + 1
    assert isinstance(model.blocks[3][0].routing_fn, SigmoidRouting)


def test_bytes_of_quantized_experts():
    layer = CondConv2d(8, 16, 3, bias=True, num_experts=4)
    condconv.quantize_experts_(layer, "int8")
    cost = count(layer, torch.zeros(1, 8, 10, 10)).layers[0]
    # int8 experts 4 x 16 x 8 x 9, fp32 biases and scales 4 x 16 each; a mixed kernel is fp32.
    assert cost.expert_bytes == 4 * 1152 + 2 * 4 * 16 * 4
    assert cost.kernel_bytes == (1152 + 16) * 4


def test_folded_windows_have_a_kernel_each() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = condconv.CondConv2d(3, 4, 1, bias=False, num_experts=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.flatten(0, 1))

    report = count(Folded(), torch.zeros(2, 5, 3, 6, 6))
    assert by_name(report)["conv"][1] == 5 * (12 * 36 + 2 * 12)
    assert report.total.madds == 5 * (12 * 36 + 2 * 12 + 3 * 2)


def test_costs_say_what_input_they_are_for_and_that_a_guess_failed() -> None:
    assert str(count(nn.Conv2d(3, 4, 3))).splitlines()[-1] == "MADDs are for one example of 3 x 224 x 224"
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(
        ValueError,
        match=r"^`example_input` must be given, got None: Sequential fails on a guess of shape \(1, 3, 224, 224\) \(",
    ):
        count(small)
    with pytest.raises(RuntimeError):  # of an example that is given, the error is the model's own
        count(small, torch.zeros(1, 3, 9, 9))


def test_the_guessed_input_suits_a_conditional_stem() -> None:
    net = nn.Sequential(condconv.CondConv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3))
    assert default_example(net).shape == (1, 2, 1024)


@pytest.mark.parametrize(
    ("argument", "model"),
    [
        ("model", "x" * 100_000),
        ("model", torch.zeros(3)),
        ("example_input", nn.Linear(3, 3)),
        ("example_input", nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(5, 5))),
        ("example_input", nn.Sequential(nn.LazyConv2d(3, 1))),
    ],
)
def test_messages_have_four_parts(argument: str, model: Any) -> None:
    assert_four_parts(argument, lambda: condconv.count(model))
