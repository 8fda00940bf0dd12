import pytest
import torch
from torch import nn

import condconv
from condconv.errors import UsageError
from condconv.export import FORMATS, export, rewrite
from condconv.export.storage import Stored, store_weights_, widened
from condconv.export.verification import make_reference
from tests.export.cases import sharpen_

# Relative error of one rounding, at most: half of 2^-7 (8 bits of significand), and half of 1/127 of the largest value.
BOUND = {"bfloat16": 2**-8, "int8": 0.5 / 127}


def large_network():
    torch.manual_seed(0)
    layers = [condconv.CondConv2d(3, 32, 3, padding=1), nn.SiLU(), condconv.CondConv2d(32, 32, 1), nn.SiLU()]
    head = [nn.Conv2d(32, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)]
    return sharpen_(nn.Sequential(*layers, *head)).eval(), torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_stored_weight_is_within_half_a_step(weights):
    model = nn.Sequential(nn.Linear(64, 32))
    linear = model[0]
    with torch.no_grad():
        linear.weight.mul_(torch.logspace(-3, 3, 32)[:, None])  # each output channel with a scale of its own
    exact = linear.weight.detach().clone()
    store_weights_(model, weights)
    largest = exact.abs() if weights == "bfloat16" else exact.abs().amax(1, keepdim=True)
    assert ((model[0].weight - exact).abs() <= 1.001 * BOUND[weights] * largest).all()
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32, getattr(torch, weights)}


def test_routing_and_small_weights_stay_as_they_are():
    network = nn.Sequential(condconv.CondConv2d(128, 8, 1), nn.Conv2d(8, 8, 3))
    assert network[0].routing_fn.fc.weight.numel() == 1024  # large enough, were it not for routing
    rewritten, _ = rewrite(network, "onnx", torch.randn(2, 128, 4, 4))
    store_weights_(rewritten, "int8")
    assert [name for name, each in rewritten.named_modules() if isinstance(each, Stored)] == ["0.form.experts"]


def test_layers_whose_weight_is_taken_without_a_call_are_stored_too():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = condconv.CondConv2d(3, 64, 4, 4)
            self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

        def forward(self, x):
            tokens = self.embed(x).flatten(2).mT
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)

    example = torch.randn(2, 3, 16, 16)
    rewritten, _ = rewrite(Attends(), "torch-export", example)
    expected = rewritten(example)
    store_weights_(rewritten, "int8")
    assert [name for name, each in rewritten.named_modules() if isinstance(each, Stored)] == [
        "embed.form.experts",
        "attention.out_proj",
    ]
    torch.testing.assert_close(rewritten(example), expected, rtol=0.1, atol=0.05)


def test_quantized_experts_are_refused_with_the_way_out(tmp_path):
    for dtype in ("int8", "bfloat16"):
        network, example = large_network()
        condconv.quantize_experts_(network, dtype)
        with pytest.raises(
            UsageError, match="must have ordinary experts, got quantized ones: export the network as it"
        ):
            export(network, tmp_path / "network.pt2", format="torch-export", example_input=example)


def test_widened_weights_compute_the_same():
    network, example = large_network()
    rewritten, _ = rewrite(network, "onnx", example)
    store_weights_(rewritten, "int8")
    stored, state = rewritten(example), {name: each.clone() for name, each in rewritten.state_dict().items()}
    with widened(rewritten):
        assert not [each for each in rewritten.modules() if isinstance(each, Stored)]
        torch.testing.assert_close(rewritten(example), stored)
        make_reference(rewritten, example)  # in fp64 too
    assert torch.equal(rewritten(example), stored)
    torch.testing.assert_close(rewritten.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("format", "weights"),
    [
        ("torch-export", "bfloat16"),
        pytest.param("torch-export", "int8", marks=pytest.mark.slow),
        pytest.param("onnx", "bfloat16", marks=pytest.mark.slow),
        ("onnx", "int8"),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)
def test_files_with_small_weights(tmp_path, format, weights):
    for package in FORMATS[format].PACKAGES:
        pytest.importorskip(package)
    network, example = large_network()
    path = tmp_path / f"n{FORMATS[format].SUFFIX}"
    large = export(network, path, format=format, example_input=example, verify=False)
    small = export(network, path, format=format, example_input=example, weights=weights)
    assert small.verified
    # 3*9*32*8 + 32*32*8 + 32*64 = 17152 weights are stored in 2 or 1 bytes instead of 4; the graph grows a little.
    saved = 17152 * (2 if weights == "bfloat16" else 3)
    assert large.bytes - small.bytes > saved / 2
    assert large.weights_error is None
    assert 1e-4 < small.weights_error < (0.02 if weights == "bfloat16" else 0.05)


def test_openvino_refuses_what_it_would_widen(tmp_path):
    network, example = large_network()
    with pytest.raises(UsageError, match='`weights` must be "float32" or "int8" for OpenVINO'):
        export(network, tmp_path / "n.xml", format="openvino", example_input=example, weights="bfloat16")
