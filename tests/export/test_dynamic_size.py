"""Files that take images of any height and width, tried at sizes that were not traced."""

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import ExportError, UsageError
from condconv.export import FORMATS, export, trials
from condconv.export.formats.request import Request
from condconv.export.trials import Trial, run_trials
from condconv.export.verification import make_reference, varied_inputs
from tests.export.cases import all_layers, layer_case, small_network

FREE = [name for name, writer in FORMATS.items() if writer.WHY_ONE_SIZE is None]
# What a compiler has to simplify at a free size: taps, patches, and padding that depends on the size.
COMPILED = ["1x1", "depthwise-3", "dense-3-same-stride", "depthwise-5-same-stride"]


def written(tmp_path, network, format, example, **options):
    for package in FORMATS[format].PACKAGES:
        pytest.importorskip(package)
    path = tmp_path / f"n{FORMATS[format].SUFFIX}"
    return export(network, path, format=format, example_input=example, dynamic_size=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("format", [name for name in FREE if name != "aoti"])
def test_all_layers_at_sizes_that_were_not_traced(tmp_path, format):
    network, example = all_layers()
    report = written(tmp_path, network, format, example)
    assert report.shape == (None, 6, None, None)
    assert set(report.errors) == {1, 2, 3, 8}
    assert set(report.errors_by_size) == {(41, 74), (10, 13), (7, 8)}
    assert max(report.errors_by_size.values()) <= report.allowed < 1e-4


@pytest.mark.slow  # compiles C++, and simplifies one index per tap: a package of all layers takes many minutes
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_layers_at_sizes_that_were_not_traced(tmp_path, name):
    network, example = layer_case(name)
    report = written(tmp_path, network, "aoti", example)
    assert set(report.errors) == {1, 2, 3, 8}
    assert set(report.errors_by_size) == {(41, 74), (10, 13), (7, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch-export", "onnx", "openvino"])
def test_a_network_of_the_paper_at_sizes_that_were_not_traced(tmp_path, format):
    pytest.importorskip("timm", reason="the networks are based on timm's", exc_type=ImportError)
    network = condconv.create_model("mobilenet_v1_cc_025_4e", num_classes=10).eval()
    report = written(tmp_path, network, format, torch.zeros(1, 3, 64, 64))
    assert report.shape == (None, 3, None, None)
    assert set(report.errors_by_size) == {(96, 128), (65, 67), (48, 48)}


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
@pytest.mark.parametrize("name", [pytest.param("depthwise-5-same-stride", marks=pytest.mark.slow), "1x1-stride-bias"])
def test_a_free_size_is_exact_for_odd_and_even_images(tmp_path, format, name):
    """TensorFlow's padding depends on the size; the file has to compute it."""
    network, example = layer_case(name)
    report = written(tmp_path, network, format, example)
    run = FORMATS[format].load(report.path)
    for size in [(12, 17), (15, 8)]:
        x = torch.randn(3, 6, *size)
        torch.testing.assert_close(run(x), network(x), rtol=1e-4, atol=1e-5)


def test_axes_have_names_in_onnx(tmp_path):
    network, example = layer_case("1x1")
    report = written(tmp_path, network, "onnx", example)
    proto = pytest.importorskip("onnx").load(report.path)
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 6, "height", "width"]
    assert FORMATS["onnx"].inspect(report.path).shape == report.shape == (None, 6, None, None)


def test_a_fixed_batch_and_free_sizes(tmp_path):
    network, example = layer_case("1x1")
    report = written(tmp_path, network, "torch-export", example, dynamic_batch=False)
    assert report.shape == (2, 6, None, None)
    assert "size     any" in str(report)
    assert " at 41 x 74, " in str(report)


class Halves(nn.Module):
    """Takes even sizes only: what is halved and enlarged again is added to what was not."""

    def __init__(self):
        super().__init__()
        self.down = condconv.CondConv2d(3, 3, 2, stride=2, num_experts=2)

    def forward(self, x):
        return (x + nn.functional.interpolate(self.down(x), scale_factor=2.0)).mean((2, 3))


def test_sizes_that_the_network_does_not_take_are_not_tried(tmp_path):
    report = written(tmp_path, Halves().eval(), "torch-export", torch.randn(1, 3, 8, 16))
    assert set(report.errors_by_size) == {(40, 80), (6, 12)}  # and not 9 x 19


def test_a_network_of_one_size_is_refused(tmp_path):
    network = nn.Sequential(condconv.CondConv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)).eval()
    message = r"`dynamic_size` must be False for .* one size, got True and .* fails at 40 x 72 \(.*\): write a file for"
    with pytest.raises(UsageError, match=message):
        written(tmp_path, network, "torch-export", torch.randn(1, 3, 8, 8))
    with pytest.raises(UsageError, match=r"without height and width, got True with \(2, 6\): leave it out, or give"):
        written(tmp_path, *(layer_case("linear")[0], "torch-export", layer_case("linear")[1]))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in FREE])
def test_runtimes_of_one_size_say_why(tmp_path, format):
    network, example = small_network()
    options = {"dynamic_batch": False} if format == "litert" else {"max_batch": 4}
    path = tmp_path / f"n{FORMATS[format].SUFFIX}"
    with pytest.raises(
        UsageError, match="`dynamic_size` must be False for .*, got True: .*; write a file for each size"
    ):
        export(network, path, format=format, example_input=example, dynamic_size=True, **options)


def test_a_file_that_is_wrong_at_another_size_is_not_kept(tmp_path, monkeypatch):
    network, example = layer_case("1x1")
    # Wrong for tall images alone.
    wrong = torch.no_grad()(lambda x: network(x.roll(x.shape[2] // 20, 2)))
    monkeypatch.setattr(FORMATS["torch-export"], "load", lambda path: wrong)
    with pytest.raises(ExportError, match="compute the same as .* torch.export, at 41 x 74, got an error"):
        written(tmp_path, network, "torch-export", example)
    assert not [*tmp_path.iterdir()]


def test_a_size_is_named_where_a_runtime_fails_at_it():
    network, example = layer_case("dense-3")
    tried = [
        Trial(size, (1,), make_reference(network, varied_inputs(example[..., : size[0], : size[1]], 1)))
        for size in ((9, 10), (5, 7))
    ]

    def run(x):
        if x.shape[-1] != 10:
            raise RuntimeError("of one size")
        return network(x).detach()

    with pytest.raises(ExportError, match="^`model` must compute .* it, at 5 x 7, got 'of one size' at batch 1: "):
        run_trials(run, tried, "it")


def test_sizes_of_volumes_and_signals_are_told_with_all_their_axes():
    assert trials.times((16, 112, 112)) == "16 x 112 x 112"
    network, example = layer_case("one-dimensional")
    request = Request(example, 2, None, True, None, "float32", {})
    assert request.shape == (2, 6, None)
    assert [each.size for each in trials.make_trials(network, request)] == [(11,), (43,), (12,), (9,)]
