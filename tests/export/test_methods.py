"""Each method is exported with a free batch, and computes the same in the runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import condconv
from condconv.export import FORMATS, export
from tests.export.cases import sharpen_


def network(method: str, num_experts: int | None) -> nn.Module:
    torch.manual_seed(0)
    separable = [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.SiLU(), *separable)
    net = nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    condconv.convert_(net, num_experts, method=method, example_input=torch.randn(1, 3, 17, 16))
    return sharpen_(net).eval()


SLOW = [pytest.param(name, None, marks=pytest.mark.slow) for name in ("condconv", "dyconv")]  # dense, as in test_forms


@pytest.mark.parametrize(
    ("method", "num_experts"),
    [*SLOW, ("odconv", None), ("odconv", 4), ("dcd", None), ("weightnet", None), ("se", None)],
)
@pytest.mark.parametrize(
    "format", ["onnx", *(pytest.param(f, marks=pytest.mark.slow) for f in ("torch-export", "openvino"))]
)
def test_a_network_with_any_batch(tmp_path: Path, method: str, num_experts: int | None, format: str) -> None:
    if not all(importlib.util.find_spec(package) for package in FORMATS[format].PACKAGES):
        pytest.skip("not installed")
    path = tmp_path / f"network{FORMATS[format].SUFFIX}"
    net = network(method, num_experts)
    report = export(net, path, format=format, example_input=torch.randn(2, 3, 17, 16))
    assert report.verified
    assert set(report.errors) == {1, 2, 3, 8}
    if method in ("dcd", "weightnet", "se"):  # of ordinary layers: no kernel is computed
        assert {choice.form for choice in report.layers} == {"own"}
        if format == "onnx":
            graph = pytest.importorskip("onnx").load(path).graph
            constants = {each.name for each in graph.initializer}
            assert all(node.input[1] in constants for node in graph.node if node.op_type == "Conv")
