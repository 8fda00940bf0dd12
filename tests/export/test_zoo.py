"""Networks of the paper at full size."""

import importlib.util

import pytest
import torch

import condconv
from condconv.export import FORMATS, export
from tests.export.cases import sharpen_

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["mobilenet_v1_cc_050_8e", "mobilenet_v2_cc_100_8e", "efficientnet_cc_b0_8e"])
@pytest.mark.parametrize("format", ["torch-export", "onnx", "openvino"])
def test_networks_of_the_paper(tmp_path, format, name):
    if not all(importlib.util.find_spec(package) for package in FORMATS[format].PACKAGES):
        pytest.skip("not installed")
    torch.manual_seed(0)
    network = condconv.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, condconv.nn.SigmoidRouting):
            sharpen_(module)
    report = export(network, tmp_path / f"n{FORMATS[format].SUFFIX}", format=format)
    assert report.verified
    assert report.notes == ()
    assert set(report.errors) == {1, 2, 3, 8}
