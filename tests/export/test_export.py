import copy
import json
import re

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import ExportError, MissingExtraError, UsageError
from condconv.export import FORMATS, export, plan, rewrite, verification
from condconv.export.routers import Router4d
from condconv.nn.routing import Float32Linear
from tests.export.cases import layer_case, small_network


def exported(tmp_path, **options):
    """Export the small network where it costs least."""
    network, example = small_network()
    return export(network, tmp_path / "n.pt2", **{"format": "torch-export", "example": example, **options})


def test_the_network_is_left_as_it_was(tmp_path):
    network, example = small_network()
    network.train()
    before = copy.deepcopy(network.state_dict())
    kinds = [type(module) for module in network.modules()]
    export(network, tmp_path / "n.pt2", format="torch-export", example=example)
    assert network.training
    assert [type(module) for module in network.modules()] == kinds
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network(example).requires_grad


def test_the_rewritten_copy_has_static_layers_and_no_norm_after_experts():
    network, example = small_network()
    rewritten, choices = rewrite(network, "onnx", example)
    assert [(each.layer, each.form) for each in choices] == [
        ("0", "scan"), ("3.depthwise", "esum"), ("3.pointwise", "bmm")
    ]  # fmt: skip
    assert not [each for each in rewritten.modules() if isinstance(each, (nn.BatchNorm2d, condconv.CondConv2d))]
    assert not [name for name, each in rewritten.named_parameters() if each.dim() > 4]
    torch.testing.assert_close(rewritten(example), network(example))


def test_a_layer_alone_can_be_rewritten():
    layer = condconv.CondConv2d(6, 4, 1, num_experts=2)
    example = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(rewrite(layer, "onnx", example)[0](example), layer(example))


@pytest.mark.parametrize("routing", ["sigmoid", "softmax", "hidden", "top_k"])
def test_delegates_get_routing_in_four_dimensions(routing):
    network = nn.Sequential(condconv.CondConv2d(6, 4, 3, num_experts=2, routing=routing)).eval()
    example = torch.randn(2, 6, 5, 5)
    rewritten, _ = rewrite(network, "executorch", example)
    assert isinstance(rewritten[0].routing_fn, Router4d)
    assert any(isinstance(each, Float32Linear) for each in rewritten.modules()) == (routing == "top_k")
    torch.testing.assert_close(rewritten(example), network(example))


def test_forms_can_be_chosen_by_pattern():
    network, example = small_network()
    _, choices = rewrite(network, "onnx", example, forms={"3.*": "esum", "3.pointwise": "scan"})
    assert [each.form for each in choices] == ["scan", "esum", "scan"]
    assert choices[1].why == "as asked"


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        ({"0": "magic"}, "`forms` must name one of bmm, esum, grouped, scan, shift, unfold, got 'magic' for '0'"),
        ({"9": "esum"}, "got '9', which fits none: its conditional layers are 0, 3.depthwise, 3.pointwise"),
        ({"0": "bmm"}, "got 'bmm' for 0: only a 1 x 1 kernel is a product of matrices"),
    ],
)
def test_forms_that_do_not_fit_are_refused(forms, message):
    network, example = small_network()
    with pytest.raises(UsageError, match=re.escape(message)):
        rewrite(network, "onnx", example, forms=forms)


@pytest.mark.parametrize(
    ("experts", "kernel", "form"), [(4, 3, "esum"), (5, 3, "scan"), (8, 3, "scan"), (8, 5, "esum"), (1, 3, "esum")]
)
def test_onnx_depthwise_layers_go_by_size_and_experts(experts, kernel, form):
    network = nn.Sequential(condconv.CondConv2d(4, 4, kernel, groups=4, num_experts=experts))
    assert plan.choose(network, "onnx", None)["0"].form == form


def test_a_fixed_batch_takes_groups_and_nothing_else(tmp_path):
    report = exported(tmp_path, dynamic_batch=False, forms={"0": "grouped"})
    assert (report.batch, set(report.errors)) == (2, {2})
    with pytest.raises(Exception, match="guard|Guard|batch|size"):
        FORMATS["torch-export"].load(report.path)(torch.randn(3, 3, 12, 11))


def test_batch_one_can_be_fixed(tmp_path):
    report = exported(tmp_path, dynamic_batch=False, example=torch.zeros(1, 3, 12, 11), forms={"0": "grouped"})
    assert (report.batch, set(report.errors), report.notes) == (1, {1}, ())


def test_the_largest_batch_is_run(tmp_path):
    report = exported(tmp_path, max_batch=5)
    assert set(report.errors) == {1, 2, 3, 5}
    assert "batch    1 to 5" in str(report)


def test_the_report_is_a_table(tmp_path):
    said = str(exported(tmp_path))
    assert re.search(r"^file     .*n\.pt2 \([\d.]+ MB\)$", said, re.MULTILINE)
    assert re.search(r"^verified yes: error .* at batch 1, .* at batch 8; allowed [\d.e-]+$", said, re.MULTILINE)
    assert re.search(r"^3\.depthwise +depthwise shift ", said, re.MULTILINE)
    assert f"torch {torch.__version__.partition('+')[0]}" in said


def test_a_file_can_be_kept_unverified_and_says_so(tmp_path):
    report = exported(tmp_path, verify=False)
    assert not report.verified
    assert report.notes == ("not verified: verify=False",)
    assert report.path.exists()
    assert "verified no" in str(report)


def test_routing_that_the_check_cannot_see_is_told(tmp_path):
    model = nn.Sequential(condconv.CondConv2d.from_conv(nn.Conv2d(3, 4, 3), num_experts=2))
    report = export(model, tmp_path / "n.pt2", format="torch-export", example=torch.zeros(1, 3, 8, 8))
    assert report.verified
    assert "could not tell a file that mixes examples up" in report.notes[0]


CONV = condconv.CondConv2d(3, 4, 3, num_experts=2)
IMAGE = torch.randn(2, 3, 8, 8)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = CONV

    def forward(self, x):
        return self.conv(x), x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "paper"}, "`format` must be one of torch-export, aoti, onnx, openvino, .*, got 'paper'"),
        ({"path": "n.onnx"}, "`path` must end in .pt2 for torch-export, got n.onnx: name it n.pt2"),
        ({"path": "no/such/n.pt2"}, "`path` must be in a directory that exists"),
        ({"model": copy.deepcopy(CONV).double()}, "`model` must be in torch.float32, got torch.float64"),
        ({"model": Two()}, r"`model` must return one tensor \[B, ...\], got tuple"),
        ({"weights": "int2"}, "`weights` must be one of float32, bfloat16, int8, got 'int2'"),
        ({"max_batch": 1}, "`max_batch` must be at least 2, with a dynamic batch, got 1"),
        ({"max_batch": 4, "dynamic_batch": False}, "`max_batch` must be at least 2, with a dynamic batch, got 4"),
        ({"example": torch.zeros(3)}, r"`example` must be a torch.float32 tensor \[B, C, ...\]"),
        ({"format": "openvino", "path": "n.xml", "opset": 18}, "`opset` must be None for OpenVINO"),
        ({"format": "executorch", "path": "n.pte"}, "`max_batch` must be given for ExecuTorch, got None"),
        ({"format": "coreml", "path": "n.mlpackage"}, "`max_batch` must be given for CoreML, got None"),
        ({"format": "executorch", "path": "n.pte", "max_batch": 4, "weights": "int8"}, '`weights` must be "float32"'),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    options = {"model": CONV, "path": "n.pt2", "format": "torch-export", "example": IMAGE, **options}
    with pytest.raises(UsageError, match=message):
        export(options.pop("model"), options.pop("path"), **options)
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS["onnx"], "PACKAGES", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r'pip install "condconv\[onnx\]"'):
        export(CONV, tmp_path / "n.onnx", format="onnx", example=IMAGE)


def test_a_failing_runtime_is_reported_with_the_batch():
    network, example = layer_case("1x1")
    reference = verification.make_reference(network, verification.varied_inputs(example, 3))

    def run(x):
        if len(x) == 2:
            raise RuntimeError("no such luck\nlong trace")
        return network(x).detach()

    with pytest.raises(ExportError, match="^it must run at batch 2, got 'no such luck'$"):
        verification.verify(run, reference, (1, 2), "it")


def test_values_that_are_not_numbers_are_wrong():
    network, example = layer_case("1x1")
    reference = verification.make_reference(network, verification.varied_inputs(example, 2))
    with pytest.raises(ExportError, match="got an error of inf at batch 2"):
        verification.verify(lambda x: network(x).detach() * torch.nan, reference, (2,), "it")


def test_class_names_and_preprocessing_travel_in_the_file(tmp_path):
    facts = {"size": 12, "mean": [0.5], "std": [0.25], "interpolation": "bicubic"}
    report = exported(tmp_path, class_names=["cat", "dog", "eel", "fox"], preprocessing=facts)
    found = FORMATS["torch-export"].inspect(report.path).metadata
    assert json.loads(found["class_names"]) == ["cat", "dog", "eel", "fox"]
    assert json.loads(found["preprocessing"]) == facts
    assert found["condconv"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_metadata_of_other_runtimes(tmp_path, format):
    for package in FORMATS[format].PACKAGES:
        pytest.importorskip(package)
    network, example = layer_case("1x1")
    path = tmp_path / f"n{FORMATS[format].SUFFIX}"
    report = export(network, path, format=format, example=example, class_names=["ä", "b, c"], preprocessing={"size": 9})
    found = FORMATS[format].inspect(report.path).metadata
    assert json.loads(found["class_names"]) == ["ä", "b, c"]
    assert json.loads(found["preprocessing"]) == {"size": 9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ["a"]}, "`class_names` must have one name for each output, 3, got 1"),
        ({"class_names": "abc"}, "`class_names` must be a sequence of names, got the text 'abc'"),
        ({"example": torch.zeros(1, 5, 8, 8)}, "`example` must be a batch that the model takes, got [B, 5, 8, 8]"),
        ({"example": (1, 2, 8, 8)}, "`example` must be a tensor [B, C, ...], got tuple"),
    ],
)
def test_what_the_network_cannot_take_or_give(tmp_path, arguments, message):
    network = nn.Sequential(condconv.CondConv2d(2, 3, 1, num_experts=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError) as error:
        export(network, tmp_path / "x.pt2", format="torch-export", **{"example": torch.zeros(1, 2, 8, 8), **arguments})
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())
