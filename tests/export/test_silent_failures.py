"""What exporters get wrong without a word: refused beforehand, or caught when the file is run."""

import re

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from condconv import CondConv2d
from condconv.errors import ExportError, UsageError
from condconv.export import FORMATS, choose, export, rewrite
from condconv.export.formats import onnx, openvino
from condconv.export.formats.request import make_request
from tests.export.cases import layer_case, small_network

pytest.importorskip("onnxruntime")


def as_example(network, example):
    """A request that is fixed to the batch of its example."""
    return make_request(network, example, False, None, False, None, "float32", None, None)


def test_a_dynamic_batch_refuses_groups():
    network, example = layer_case("dense-3")
    with pytest.raises(UsageError, match="got 'grouped' for 0: the number of groups would hold the example's batch"):
        rewrite(network, "aoti", example, forms={"*": "grouped"})


@pytest.mark.slow  # compiles C++
def test_groups_would_give_the_rows_of_the_example_for_any_input(tmp_path, monkeypatch):
    """Neither torch.export nor AOTInductor says a word: running the file does."""
    monkeypatch.setattr(choose, "why_not_form", lambda *_: None)
    network, example = layer_case("dense-3")
    with pytest.raises(ExportError, match="at batch 1|for batch 1"):
        export(network, tmp_path / "n.pt2", format="aoti", example_input=example, forms={"*": "grouped"})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "form", ["bmm", "shift", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unfold", "esum"))]
)
def test_two_graphs_serve_all_batches(form):
    torch._dynamo.reset()
    network, _ = layer_case("1x1" if form == "bmm" else "dense-3")
    rewritten, _ = rewrite(network, "torch-export", torch.randn(2, 6, 9, 10), forms={"*": form})
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rewritten, backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch in range(1, 12):
            x = torch.randn(batch, 6, 9, 10)
            torch.testing.assert_close(compiled(x), rewritten(x), rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("opset", [11, 17])
def test_an_opset_that_would_not_be_honoured_is_refused(tmp_path, opset):
    network, example = layer_case("1x1")
    with pytest.raises(UsageError, match=f"`opset` must lie between 18 and 23, got {opset}: torch writes no other"):
        export(network, tmp_path / "n.onnx", format="onnx", example_input=example, opset=opset)


def test_the_opset_is_the_one_asked_for(tmp_path):
    network, example = layer_case("1x1")
    for opset in (18, 23):
        path = tmp_path / f"{opset}.onnx"
        assert export(network, path, format="onnx", example_input=example, opset=opset).opset == opset
        assert onnx.inspect(path).opset == opset


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_file_that_lost_its_batch_axis_is_not_kept(tmp_path, monkeypatch, format):
    pytest.importorskip(FORMATS[format].PACKAGES[-1])
    network, example = layer_case("dense-3")
    write = FORMATS[format].write
    fixed = lambda model, path, request: write(model, path, as_example(network, example))  # noqa: E731
    monkeypatch.setattr(FORMATS[format], "write", fixed)
    with pytest.raises(ExportError, match=r"must be in the file as \[any, 6, 9, 10\], got \[2, 6, 9, 10\]"):
        export(network, tmp_path / f"n{FORMATS[format].SUFFIX}", format=format, example_input=example)
    assert not [*tmp_path.iterdir()]


def test_one_example_does_not_make_a_batch_of_one(tmp_path):
    network, example = layer_case("dense-3")
    report = export(network, tmp_path / "n.onnx", format="onnx", example_input=example[:1])
    assert report.batch is None
    assert onnx.inspect(tmp_path / "n.onnx").shape[0] is None


class AllAlike(nn.Module):
    """Convolves a whole batch with the kernel of its first example: right at batch 1 only, and of the right shape."""

    def __init__(self, layer: CondConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, routing_weights):
        return self.layer(x, routing_weights[:1].expand(x.shape[0], -1))


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_right_shape_and_wrong_values_are_caught(tmp_path, monkeypatch, format):
    """As a kernel computed for batch 1 is, exported with a dynamic batch."""
    network, example = layer_case("dense-3")
    write = FORMATS[format].write

    def write_mutant(model, path, request):
        model[0].form = AllAlike(network[0])
        model[1] = network[1]
        return write(model, path, request)

    monkeypatch.setattr(FORMATS[format], "write", write_mutant)
    path = tmp_path / f"n{FORMATS[format].SUFFIX}"
    with pytest.raises(ExportError, match=r"must compute the same as the file in .*, got an error of .* at batch 2"):
        export(network, path, format=format, example_input=example)
    assert not [*tmp_path.iterdir()]


def test_rows_of_the_example_for_any_input_are_caught(tmp_path, monkeypatch):
    network, example = layer_case("dense-3")
    load = onnx.load

    def load_fixed(path):
        run = load(path)
        return lambda x: run(torch.cat([x, x, x])[:2])

    monkeypatch.setattr(onnx, "load", load_fixed)
    message = re.escape("the file in ONNX Runtime, got shape (2, 10, 9, 10) instead of (1, 10, 9, 10) at batch 1: ")
    with pytest.raises(ExportError, match=message):
        export(network, tmp_path / "n.onnx", format="onnx", example_input=example)


def test_litert_with_a_dynamic_batch_is_refused(tmp_path):
    network, example = small_network()
    message = re.escape("`dynamic_batch` must be False for LiteRT, got True: a resized file gives wrong values")
    with pytest.raises(UsageError, match=rf"{message}; .* the batch size you need \(`--batch`\), and write"):
        export(network, tmp_path / "n.tflite", format="litert", example_input=example)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_patches_never_reach_runtimes_that_are_slow_with_them(format):
    forms = {rule.form for rule in choose.TABLES[format]}
    assert ("unfold" in forms) == (format == "torch-export")
    assert "grouped" not in forms


@pytest.mark.slow
def test_openvino_is_made_from_a_graph_that_keeps_the_loop(tmp_path):
    """Traced, a loop over the batch has as many rows as the example."""
    openvino_package = pytest.importorskip("openvino")
    network, example = layer_case("dense-3")
    export(network, tmp_path / "n.xml", format="openvino", example_input=example)
    model = openvino_package.Core().read_model(tmp_path / "n.xml")
    assert {node.get_type_name() for node in model.get_ops()} & {"Loop", "TensorIterator"}
    assert openvino.inspect(tmp_path / "n.xml").shape[0] is None


@pytest.mark.slow
def test_a_file_with_several_loops_leaves_onnx_runtime_nothing_to_warn_of(tmp_path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = nn.Sequential(
        CondConv2d(6, 6, 3, padding=1, groups=6, num_experts=8),
        CondConv2d(6, 6, 3, padding=1, groups=6, num_experts=8),
        nn.Conv2d(6, 10, 1),
        CondConv2d(10, 10, 3, padding=1, groups=10, num_experts=8),
    ).eval()
    export(network, tmp_path / "n.onnx", format="onnx", example_input=torch.randn(2, 6, 7, 7), forms={"*": "scan"})
    capfd.readouterr()
    onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
