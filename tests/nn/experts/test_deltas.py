"""Differences from a shared kernel that count by a scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condconv
from condconv.errors import UsageError
from condconv.nn import DeltaExperts


def experts_of(text: str) -> DeltaExperts:
    torch.manual_seed(0)
    layer = condconv.CondConv2d.from_conv(nn.Conv2d(6, 4, 3), 3, experts=text)
    assert isinstance(layer.experts, DeltaExperts)
    return layer.experts


def mixed(experts: DeltaExperts) -> Tensor:
    return experts.mix(torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.2, 0.4]]))[0]


def test_a_scale_leaves_the_start_as_it_is_and_shortens_the_steps_of_adam() -> None:
    whole, tenth = experts_of("deltas"), experts_of("deltas(scale=0.1)")
    before = mixed(whole).detach()
    torch.testing.assert_close(mixed(tenth), before)
    torch.testing.assert_close(tenth.kernels(), whole.kernels())
    moved = []
    for experts in (whole, tenth):
        optimizer = torch.optim.Adam(experts.parameters(), lr=0.01, eps=1e-12)
        mixed(experts)[1].square().sum().backward()
        optimizer.step()
        moved.append(mixed(experts).detach() - before)
    shared, routed = ([each[0] for each in moved], [each[1] - each[0] for each in moved])
    torch.testing.assert_close(shared[0], shared[1])  # W0 takes the same step
    torch.testing.assert_close(routed[1], 0.1 * routed[0], rtol=1e-3, atol=1e-6)


def test_a_scale_travels_with_the_weights() -> None:
    given, taker = experts_of("deltas(scale=0.2)"), experts_of("deltas(scale=0.1)")
    taker.load_state_dict(given.state_dict())
    torch.testing.assert_close(mixed(taker), mixed(given))
    assert "scale=0.2" in repr(taker)
    with pytest.raises(RuntimeError, match="scale"):
        experts_of("deltas").load_state_dict(given.state_dict())
    with pytest.raises(RuntimeError, match="scale"):
        taker.load_state_dict(experts_of("deltas").state_dict())


@pytest.mark.parametrize("scale", [0, 1e-300, 1e-6, -0.1, 1.5, True, "a", float("nan")])
def test_a_scale_out_of_range_is_refused(scale: Any) -> None:
    with pytest.raises(UsageError, match="`scale` must be a number from 0.001 to 1, got .*: 0.1 suits"):
        DeltaExperts(condconv.nn.experts.KernelSpec((4, 6, 3, 3), 4), 3, scale=scale)


@pytest.mark.parametrize("deviation", [0.01, 1, 10])
def test_differences_of_the_smallest_scale_are_finite_in_fp16(deviation: float) -> None:
    layer = nn.Conv2d(8, 8, 3)
    nn.init.normal_(layer.weight, std=deviation)
    made = condconv.CondConv2d.from_static(layer.half(), num_experts=4, experts="deltas(scale=0.001)")
    assert bool(made.experts.weight.isfinite().all())


def test_experts_without_values_say_so_of_their_scale() -> None:
    with torch.device("meta"):
        layer = condconv.CondConv2d(6, 4, 3, experts="deltas(scale=0.1)")
    assert "scale=?" in repr(layer.experts)


def test_what_is_converted_takes_a_tenth_and_small_networks_take_all() -> None:
    converted = condconv.CondConv2d.from_conv(nn.Conv2d(6, 4, 3))
    small = condconv.create_model("small_dense_cc_100_2e", num_classes=3)
    scales = [layer.experts.scale for layer in condconv.nn.conditional.conditional_layers(small).values()]
    assert converted.experts.options() == "scale=0.1"
    assert set(scales) == {None}
