"""What is depthwise is one question, and all rooms ask it here."""

from __future__ import annotations

import pytest
import torch

from condconv import CondConv2d, convert_, select
from condconv.export.choose import kind_of
from condconv.lab.bench.cases import LayerCase
from condconv.ops.geometry import Geometry, has_multiplier, is_depthwise


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "groups", "depthwise", "multiplier"),
    [(6, 6, 6, True, False), (6, 12, 6, True, True), (6, 6, 3, False, False), (1, 1, 1, False, False)],
)
def test_rooms_agree(in_channels: int, out_channels: int, groups: int, depthwise: bool, multiplier: bool) -> None:
    assert is_depthwise(groups, in_channels) == depthwise
    assert has_multiplier(in_channels, out_channels) == multiplier
    layer = CondConv2d(in_channels, out_channels, 3, groups=groups, num_experts=2)
    assert Geometry((1, 1), (0, 0), (1, 1), groups).is_depthwise(layer.weight) == depthwise
    assert (kind_of(layer) == "depthwise") == (depthwise and not multiplier)
    if not multiplier:
        named = LayerCase(3, in_channels, out_channels, 8, groups).name
        assert named.startswith("depthwise") == depthwise


def test_a_selector_agrees_too() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(6, 12, 3, groups=6), torch.nn.Conv2d(12, 12, 3, groups=3), torch.nn.Conv2d(12, 1, 1)
    )
    report = convert_(model, num_experts=2, layers=select.depthwise(), example_input=torch.randn(2, 6, 9, 9))
    assert [layer.name for layer in report.layers] == ["0"]
