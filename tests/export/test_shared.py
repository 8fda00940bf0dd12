"""Layers of one kernel with routed parts are written as ordinary layers, and run in each runtime at any batch size."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condconv.errors import UsageError
from condconv.export import FORMATS, export
from condconv.nn import CondConv1d, CondConv2d, CondConvTranspose2d, CondLinear, route_block_
from condconv.nn.routing import SigmoidRouting
from tests.export.cases import sharpen_

shared = functools.partial(CondConv2d, num_experts=4, experts="shared")


class Block(nn.Module):
    """A separable block with one routing, whose layers have different parts."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = shared(12, 12, 3, padding=1, groups=12, bias=False)
        self.pointwise = shared(12, 16, 1, bias=False, experts="shared(rank=2)")
        self.dense = shared(16, 8, 3, stride=2, padding=1, experts="shared(gains=True)")
        route_block_(self, SigmoidRouting(12, 4), [self.depthwise, self.pointwise, self.dense])
        self.norms = nn.ModuleList([nn.BatchNorm2d(12), nn.BatchNorm2d(16)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.depthwise(x)).relu()
        x = self.norms[1](self.pointwise(x)).relu()
        y: Tensor = self.dense(x)
        return y


def network() -> nn.Module:
    torch.manual_seed(0)
    added = [
        shared(8, 8, 3, padding=1, experts="shared(outputs=3)"),
        shared(8, 8, 3, padding=1, groups=8, experts="shared(kernels=2)"),
    ]
    layers = [shared(3, 12, 3), nn.BatchNorm2d(12), nn.SiLU(), Block(), *added, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return sharpen_(nn.Sequential(*layers, CondLinear(8, 5, num_experts=3, experts="shared"))).eval()


@pytest.mark.parametrize("format", ["torch-export", "onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_network_with_any_batch(tmp_path: Path, format: str) -> None:
    if not all(importlib.util.find_spec(package) for package in FORMATS[format].PACKAGES):
        pytest.skip("not installed")
    path = tmp_path / f"network{FORMATS[format].SUFFIX}"
    report = export(network(), path, format=format, example_input=torch.randn(2, 3, 17, 16))
    assert report.verified
    assert set(report.errors) == {1, 2, 3, 8}
    assert {choice.form for choice in report.layers} == {"own"}
    if format == "onnx":
        graph = pytest.importorskip("onnx").load(path).graph
        constants = {each.name for each in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convolutions) >= 11
        assert all(node.input[1] in constants for node in convolutions)  # no kernel is computed
        assert not any(node.op_type in ("Loop", "Scan") for node in graph.node)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (CondConv1d(6, 10, 3, padding=1, num_experts=3, experts="shared"), (6, 11)),
        (CondConvTranspose2d(6, 10, 3, stride=2, num_experts=3, experts="shared(rank=2)"), (6, 9, 10)),
        (CondLinear(6, 10, num_experts=3, experts="shared(gains=True)"), (4, 6)),
        (CondConv1d(6, 10, 3, padding=1, num_experts=3, experts="shared(outputs=2)"), (6, 11)),
        (CondConvTranspose2d(6, 10, 3, stride=2, num_experts=3, experts="shared(outputs=2, kernels=1)"), (6, 9, 10)),
        (CondLinear(6, 10, num_experts=3, experts="shared(outputs=2)"), (4, 6)),
    ],
    ids=["one dimension", "transposed", "rows", "one dimension, added", "transposed, added", "rows, added"],
)
def test_other_kinds_of_layers(tmp_path: Path, layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = sharpen_(nn.Sequential(layer, nn.Tanh())).eval()
    report = export(model, tmp_path / "n.pt2", format="torch-export", example_input=torch.randn(2, *shape))
    assert report.verified
    assert report.layers[0].form == "own"


@pytest.mark.parametrize(
    ("experts", "form", "message"),
    [
        ("shared", "shift", "got 'shift' for 0: its experts are SharedExperts: take own"),
        ("dense", "own", "got 'own' for 0: its experts are DenseExperts: take another form"),
    ],
)
def test_a_form_that_does_not_fit(tmp_path: Path, experts: Any, form: str, message: str) -> None:
    model = nn.Sequential(CondConv2d(3, 4, 3, num_experts=2, experts=experts))
    with pytest.raises(UsageError, match=message):
        export(model, tmp_path / "n.onnx", format="onnx", example_input=torch.randn(1, 3, 8, 8), forms={"0": form})
