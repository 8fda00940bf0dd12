"""What `torch.jit.trace` records is for a file: plain torch, for any batch size, without warnings of this package."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

from condconv import CondConv1d, CondConv2d, CondConv3d, CondConvTranspose2d, CondLinear, convert_
from condconv.errors import UsageError
from condconv.nn import ROUTING

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (CondConv2d(4, 6, 3, padding=1, num_experts=3), (4, 9, 8)),
    "depthwise": (CondConv2d(4, 4, 3, 2, padding="tf_same", groups=4, num_experts=3), (4, 9, 8)),
    "multiplier": (CondConv2d(4, 8, 3, padding=1, groups=4, padding_mode="reflect", num_experts=3), (4, 7, 8)),
    "one expert": (CondConv2d(4, 6, 3, num_experts=1), (4, 7, 8)),
    "one pixel": (CondConv2d(4, 6, 1, num_experts=3), (4, 1, 1)),
    "to one pixel": (CondConv2d(4, 6, (7, 8), num_experts=3), (4, 7, 8)),
    "mixed outputs": (CondConv2d(4, 6, 3, groups=2, num_experts=3, impl="mix_outputs"), (4, 7, 8)),
    "1d": (CondConv1d(4, 6, 3, num_experts=3), (4, 9)),
    "3d": (CondConv3d(4, 6, 2, num_experts=3), (4, 3, 4, 3)),
    "transposed": (CondConvTranspose2d(4, 6, 3, 2, 1, 1, num_experts=3), (4, 5, 4)),
    "transposed pointwise": (CondConvTranspose2d(4, 6, 1, num_experts=3), (4, 5, 4)),
    "linear": (CondLinear(4, 6, num_experts=3), (4,)),
    "rows": (CondLinear(4, 6, num_experts=3), (5, 4)),
}


def traced(model: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    """Trace a model, save it and load it again; what is not torch's own operator is in no file."""
    with torch.no_grad():
        recorded = torch.jit.trace(model.eval(), x)
    assert "condconv::" not in str(recorded.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(recorded, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_another_batch_size(name: str) -> None:
    layer, shape = LAYERS[name]
    loaded = traced(nn.Sequential(layer), torch.randn(2, *shape))
    for batch in (1, 5):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(loaded(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", [name for name in ROUTING if name != "external"])
def test_routing_functions(routing: str) -> None:
    layer = CondConv2d(4, 6, 3, num_experts=3, routing=routing)
    x = torch.randn(5, 4, 7, 6)
    torch.testing.assert_close(traced(nn.Sequential(layer), torch.randn(2, 4, 7, 6))(x), layer(x), rtol=1e-4, atol=1e-5)


def test_channels_last_and_autocast() -> None:
    layer = CondConv2d(4, 6, 3, num_experts=3).to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, 7, 6).to(memory_format=torch.channels_last)
    torch.testing.assert_close(traced(nn.Sequential(layer), x[:2])(x), layer(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert "condconv::" not in str(torch.jit.trace(layer, x, check_trace=False).inlined_graph)


def test_a_converted_network_traces_without_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8))
    convert_(model, num_experts=3, example_input=torch.randn(2, 3, 9, 9))
    x = torch.randn(4, 3, 9, 9)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Converting a tensor to")
        loaded = traced(model, x[:1])
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "grouped", "loop", "native"])
def test_what_would_fix_the_batch_or_need_this_package_is_refused(impl: str) -> None:
    layer = CondConv2d(4, 6, 3, num_experts=3, impl=impl).eval()
    with pytest.raises(UsageError, match=f"`impl` must be able to run this call, got '{impl}': .*; take 'auto' or"):
        torch.jit.trace(layer, torch.randn(2, 4, 7, 6))
    assert layer(torch.randn(2, 4, 7, 6)).shape == (2, 6, 5, 4)


def test_wrong_shapes_are_said_while_tracing_too() -> None:
    layer = CondConv2d(4, 6, 3, num_experts=3)
    with pytest.raises(UsageError, match=r"`x` must have shape \[B, 4, \*, \*\]"):
        torch.jit.trace(layer, torch.randn(2, 3, 7, 6))
    with pytest.raises(UsageError, match=r"`routing_weights` must have shape \[B, E\] = \(2, 3\), got \(2, 2\)"):
        torch.jit.trace(layer, (torch.randn(2, 4, 7, 6), torch.rand(2, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_the_older_exporter_to_onnx() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    layer = CondConv2d(3, 8, 3, 2, padding="tf_same", num_experts=3)
    model = nn.Sequential(layer, CondConv2d(8, 8, 3, padding=1, groups=8, num_experts=3), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(model, nn.Flatten(), CondLinear(8, 5, num_experts=3)).eval()
    file, axes = io.BytesIO(), {"x": {0: "batch"}, "y": {0: "batch"}}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(model, (torch.randn(2, 3, 8, 9),), file, dynamo=False, dynamic_axes=axes, **names)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 9)
        (y,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-4, atol=1e-5)
