"""Layers of a shared kernel with routed differences are exported in the forms of dense ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import condconv
from condconv.export import FORMATS, export
from condconv.nn import CondConv1d, CondConv2d, CondConvTranspose2d, CondLinear
from tests.export.cases import sharpen_


def network() -> nn.Module:
    torch.manual_seed(0)
    more: Any = {"num_experts": 3, "experts": "deltas(scale=0.5)"}
    layers = (
        *(CondConv2d(3, 12, 3, **more), nn.BatchNorm2d(12), nn.SiLU()),
        *(CondConv2d(12, 12, 3, groups=12, padding=1, bias=False, **more), nn.BatchNorm2d(12)),
        *(CondConv2d(12, 8, 1, **more), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), CondLinear(8, 5, **more)),
    )
    model = sharpen_(nn.Sequential(*layers))
    for name, parameter in model.named_parameters():
        if name.endswith("experts.bias"):
            nn.init.normal_(parameter)
    return model.eval()


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("format", "weights"),
    [
        ("torch-export", "float32"),
        ("onnx", "float32"),
        ("onnx", "int8"),
        pytest.param("openvino", "float32", marks=_SLOW),
        pytest.param("aoti", "float32", marks=_SLOW),
    ],
)
def test_a_network_with_any_batch(tmp_path: Path, format: str, weights: str) -> None:
    if not all(importlib.util.find_spec(package) for package in FORMATS[format].PACKAGES):
        pytest.skip("not installed")
    model = network()
    path = tmp_path / f"network{FORMATS[format].SUFFIX}"
    example_input = torch.randn(2, 3, 17, 16)
    report = export(model, path, format=format, example_input=example_input, weights=weights)
    assert report.verified
    assert {choice.form for choice in report.layers} & {"bmm", "scan", "unfold"}
    assert isinstance(model[0].experts, condconv.nn.DeltaExperts)  # the network itself is as it was


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (CondConv1d(6, 10, 3, padding=1, num_experts=3, experts="deltas"), (6, 11)),
        (CondConvTranspose2d(6, 10, 3, stride=2, num_experts=3, experts="deltas"), (6, 9, 10)),
        (CondLinear(6, 10, num_experts=3, experts="deltas"), (4, 6)),
        (CondConv2d(6, 10, 3, num_experts=1, experts="deltas"), (6, 9, 10)),
    ],
    ids=["one dimension", "transposed", "rows", "one expert"],
)
def test_other_kinds_of_layers(tmp_path: Path, layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = sharpen_(nn.Sequential(layer, nn.Tanh())).eval()
    report = export(model, tmp_path / "n.pt2", format="torch-export", example_input=torch.randn(2, *shape))
    assert report.verified
