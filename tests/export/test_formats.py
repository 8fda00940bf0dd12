"""Every kind of layer in every runtime that is installed, at batch sizes 1, 2, 3 and 8."""

import importlib.util
import json

import pytest
import torch

from condconv.errors import ExportError
from condconv.export import FORMATS, export, rewrite, verification
from condconv.nn.block_routing import routing_functions
from tests.export.cases import LAYERS, all_layers, errors_by_layer, layer_case, small_network

# aoti compiles C++, half a minute a network: it has tests of its own.
RUN_HERE = [
    name
    for name, writer in FORMATS.items()
    if name != "aoti" and all(importlib.util.find_spec(package) for package in writer.PACKAGES)
]


def roll(weights):
    return weights.roll(1, 0)


def average(weights):
    return weights.mean(0, keepdim=True).expand_as(weights)


def suffixed(tmp_path, format):
    return tmp_path / f"network{FORMATS[format].SUFFIX}"


def options(format):
    """Return what a format cannot do without."""
    return {"litert": {"dynamic_batch": False}, "executorch": {"max_batch": 8}, "coreml": {"max_batch": 8}}.get(
        format, {}
    )


def check(report, format):
    assert report.verified or format == "coreml"
    if format == "litert":
        assert (report.batch, set(report.errors)) == (2, {2})
    else:
        assert report.batch is None
        assert set(report.errors) == ({1, 2, 3, 8} if report.verified else set())
    assert max(report.errors.values(), default=0) <= report.allowed < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("format", RUN_HERE)
def test_all_layers_in_every_runtime(tmp_path, format):
    network, example = all_layers()
    report = export(network, suffixed(tmp_path, format), format=format, example_input=example, **options(format))
    check(report, format)
    assert len(report.layers) == len(LAYERS)
    assert report.notes == () or format == "coreml"


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("format", RUN_HERE)
def test_every_layer_in_every_runtime(tmp_path, format, name):
    network, example = layer_case(name)
    check(export(network, suffixed(tmp_path, format), format=format, example_input=example, **options(format)), format)


@pytest.mark.slow  # compiles C++: one package of all layers takes less than a package each
def test_every_layer_of_a_compiled_package_and_its_mutants(tmp_path):
    """Each layer is compared by itself, and so is what it gives with its routing weights mixed up."""
    network, example = all_layers()
    report = export(network, tmp_path / "n.pt2", format="aoti", example_input=example)
    assert set(report.errors) == {1, 2, 3, 8}
    run = FORMATS["aoti"].load(report.path)
    errors = errors_by_layer(run, network, (1, 2, 3, 8))
    assert max(errors.values()) < report.allowed
    for change in (roll, average):
        wrong = errors_by_layer(verification.with_routing(network, change), network, (2, 3, 8))
        assert min(error for name, error in wrong.items() if name != "constant") > report.allowed


@pytest.mark.parametrize("change", [roll, average])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "constant"])
def test_the_check_sees_wrong_routing_of_every_layer(name, change):
    network, example = layer_case(name)
    reference = verification.make_reference(network, verification.varied_inputs(example, 14))
    mutant = verification.with_routing(rewrite(network, "onnx", example)[0], change)
    with pytest.raises(ExportError, match=r"must compute the same as it, got an error of .* at batch 2"):
        verification.verify(mutant, reference, (1, 2, 3, 8), "it")


@pytest.mark.parametrize("change", [roll, pytest.param(average, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "format",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "openvino" else name
        for name in RUN_HERE
        if name != "coreml"
    ],
)
def test_a_file_with_wrong_routing_is_not_kept(tmp_path, monkeypatch, format, change):
    network, example = small_network()
    writer = FORMATS[format]
    write = writer.write

    def write_mutant(model, path, request):
        for routing in set(routing_functions(model).values()):
            routing.register_forward_hook(lambda module, arguments, weights: change(weights))
        return write(model, path, request)

    monkeypatch.setattr(writer, "write", write_mutant)
    path = suffixed(tmp_path, format)
    path.write_text("the file before")
    with pytest.raises(ExportError, match=f"must compute the same as the file in {writer.RUNTIME}, got an error"):
        export(network, path, format=format, example_input=example, **options(format))
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "the file before"


@pytest.mark.slow  # compiles C++
@pytest.mark.parametrize("name", ["dense-3", "net"])
def test_a_compiled_package_gives_as_many_rows_as_it_gets(tmp_path, name):
    network, example = small_network() if name == "net" else layer_case(name)
    path, names = tmp_path / "n.pt2", ["a", "b", "c", "d"]
    report = export(network, path, format="aoti", example_input=example, class_names=names)
    assert report.verified
    run = FORMATS["aoti"].load(path)
    for batch in (1, 2, 5):
        assert len(run(torch.randn(batch, *example.shape[1:]))) == batch
    assert json.loads(FORMATS["aoti"].inspect(path).metadata["class_names"]) == names
