"""Networks of the paper at full size; sizes and errors are in benchmarks/results/export-networks.json."""

import importlib.util

import pytest

from condconv.export import FORMATS, export
from tests.export.cases import paper_network

pytestmark = pytest.mark.slow

NETWORKS = (
    "mobilenet_v1_cc_050_8e",
    "mobilenet_v2_cc_100_8e",
    "mnasnet_a1_cc_100_8e",
    "efficientnet_cc_b0_8e",
    "resnet_cc_50_8e",
)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("format", ["torch-export", "onnx", "openvino"])
def test_networks_of_the_paper(tmp_path, format, name):
    pytest.importorskip("timm", reason="the networks are based on timm's", exc_type=ImportError)
    if not all(importlib.util.find_spec(package) for package in FORMATS[format].PACKAGES):
        pytest.skip("not installed")
    report = export(paper_network(name), tmp_path / f"n{FORMATS[format].SUFFIX}", format=format)
    assert report.verified
    assert report.notes == ()
    assert set(report.errors) == {1, 2, 3, 8}
