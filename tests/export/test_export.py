import copy
import errno
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import condconv
from condconv.errors import ExportError, MissingExtraError, UsageError
from condconv.export import FORMATS, choose, export, rewrite, verification
from condconv.export.routers import Router4d
from condconv.nn.float32_linear import Float32Linear
from tests.export.cases import layer_case, small_network


def exported(tmp_path, **options):
    """Export the small network where it costs least."""
    network, example = small_network()
    return export(network, tmp_path / "n.pt2", **{"format": "torch-export", "example_input": example, **options})


def test_the_network_is_left_as_it_was(tmp_path):
    network, example = small_network()
    network.train()
    before = copy.deepcopy(network.state_dict())
    kinds = [type(module) for module in network.modules()]
    export(network, tmp_path / "n.pt2", format="torch-export", example_input=example)
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
        ({"0": "magic"}, "`forms` must name one of bmm, esum, grouped, own, scan, shift, unfold, got 'magic' for '0'"),
        ({"9": "esum"}, "got '9' for none: near names are 3.pointwise, 3.depthwise, 0"),
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
    assert choose.choose(network, "onnx", None)["0"].form == form


def test_a_fixed_batch_takes_groups_and_nothing_else(tmp_path):
    report = exported(tmp_path, dynamic_batch=False, forms={"0": "grouped"})
    assert (report.batch, set(report.errors)) == (2, {2})
    with pytest.raises(Exception, match="[Gg]uard|to be equal to 2, but got 3"):
        FORMATS["torch-export"].load(report.path)(torch.randn(3, 3, 12, 11))


def test_batch_one_can_be_fixed(tmp_path):
    report = exported(tmp_path, dynamic_batch=False, example_input=torch.zeros(1, 3, 12, 11), forms={"0": "grouped"})
    assert (report.batch, set(report.errors), report.notes) == (1, {1}, ())


def test_the_largest_batch_is_run(tmp_path):
    report = exported(tmp_path, max_batch=5)
    assert set(report.errors) == {1, 2, 3, 5}
    assert "batch    1 to 5" in str(report)


class Activated(nn.BatchNorm2d):
    """A norm that does more than normalise, as the sync norms of other libraries do."""

    def forward(self, x):
        return torch.relu(super().forward(x))


@pytest.mark.parametrize("kind", ["activated", "sync"])
def test_a_norm_that_cannot_be_folded_is_exported_as_it_is_and_told(tmp_path, kind):
    network, example = small_network()
    if kind == "sync":
        network[1] = pytest.importorskip("timm.layers.norm_act").SyncBatchNormAct(8)
        network[1].add_module("act", nn.SiLU())
    else:
        network[1] = Activated(8)
    network[1].eval().running_mean.normal_()
    report = export(network, tmp_path / "n.pt2", format="torch-export", example_input=example)
    assert report.verified
    assert [each.unfolded and each.unfolded[0] for each in report.layers] == ["1", None, None]
    assert "not folded into 0: 1: it has a forward of its own" in str(report)


def test_the_report_is_a_table(tmp_path):
    said = str(exported(tmp_path))
    assert re.search(r"^file     .*n\.pt2 \([\d.]+ MB\)$", said, re.MULTILINE)
    assert re.search(r"^verified yes: error .* at batch 1, .* at batch 8; allowed [\d.e-]+$", said, re.MULTILINE)
    assert re.search(r"^size     12 x 11, fixed$", said, re.MULTILINE)
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
    report = export(model, tmp_path / "n.pt2", format="torch-export", example_input=torch.zeros(1, 3, 8, 8))
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
        ({"path": None}, "`path` must be a text or a Path, got None"),
        ({"model": CONV.state_dict()}, "`model` must be a torch.nn.Module, got a OrderedDict: give the network itself"),
        ({"model": torch.compile(CONV)}, "`model` must not be compiled, got the result of torch.compile"),
        ({"model": nn.DataParallel(CONV)}, "`model` must not be wrapped, got a DataParallel: give model.module"),
        (
            {"model": torch.fx.symbolic_trace(nn.ReLU())},
            "`model` must be an ordinary module, got a scripted or traced one",
        ),
        ({"model": copy.deepcopy(CONV).to("meta")}, "`model` must have values in its weights, got some without"),
        ({"model": nn.Sequential(nn.LazyConv2d(4, 3))}, "`model` must have values in its weights, got some without"),
        ({"model": copy.deepcopy(CONV).bfloat16()}, r"in torch.float32, got torch.bfloat16: give model.float\(\)"),
        (
            {"model": nn.Sequential(CONV, nn.BatchNorm2d(4, track_running_stats=False))},
            "by itself, got '1', a batch norm",
        ),
        ({"dynamic_size": 1}, "`dynamic_size` must be True or False, got 1: give one of them"),
        ({"dynamic_batch": "no"}, "`dynamic_batch` must be True or False, got 'no'"),
        ({"max_batch": 2.5}, "`max_batch` must be a whole number or None, got 2.5"),
        ({"opset": "18"}, "`opset` must be a whole number or None, got '18'"),
        ({"forms": ["esum"]}, "`forms` must map patterns of layers' names to forms, got a list: give a dictionary"),
        ({"model": copy.deepcopy(CONV).double()}, "`model` must be in torch.float32, got torch.float64"),
        ({"model": Two()}, r"`model` must return one tensor \[B, ...\], got a tuple"),
        (
            {"model": nn.Linear(3, 4), "example_input": None},
            "`example_input` must be given, got None: Linear has no convolution to tell",
        ),
        ({"weights": "int2"}, "`weights` must be one of float32, bfloat16, int8, got 'int2'"),
        ({"max_batch": 1}, "`max_batch` must be at least 2, with a dynamic batch, got 1"),
        ({"max_batch": 4, "dynamic_batch": False}, "`max_batch` must be at least 2, with a dynamic batch, got 4"),
        (
            {"example_input": torch.zeros(0, 3, 8, 8)},
            r"got torch.float32 \(0, 3, 8, 8\): convert it, and give one example",
        ),
        ({"example_input": torch.zeros(3)}, r"`example_input` must be a torch.float32 tensor \[B, C, ...\]"),
        ({"format": "openvino", "path": "n.xml", "opset": 18}, "`opset` must be None for OpenVINO"),
        ({"opset": 18}, "`opset` must be None for torch.export, got 18: its files have none; leave it out"),
        (
            {"format": "aoti", "opset": 18},
            "`opset` must be None for AOTInductor, got 18: its files have none; leave it out",
        ),
        ({"format": "executorch", "path": "n.pte"}, "`max_batch` must be given for ExecuTorch, got None"),
        ({"format": "coreml", "path": "n.mlpackage"}, "`max_batch` must be given for CoreML, got None"),
        (
            {"format": "executorch", "path": "n.pte", "max_batch": 4, "weights": "int8"},
            "got 'int8': small weights leave XNNPACK, unless activations are in int8 too",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    options = {"model": CONV, "path": "n.pt2", "format": "torch-export", "example_input": IMAGE, **options}
    with pytest.raises(UsageError, match=message):
        export(options.pop("model"), options.pop("path"), **options)
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS["onnx"], "PACKAGES", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r'pip install "condconv\[onnx\]"'):
        export(CONV, tmp_path / "n.onnx", format="onnx", example_input=IMAGE)


def test_a_failing_runtime_is_reported_with_the_batch():
    network, example = layer_case("1x1")
    reference = verification.make_reference(network, verification.varied_inputs(example, 3))

    def run(x):
        if len(x) == 2:
            raise RuntimeError("no such luck\nlong trace")
        return network(x).detach()

    with pytest.raises(ExportError, match="^`model` must compute the same as it, got 'no such luck' at batch 2: "):
        verification.verify(run, reference, (1, 2), "it")


def test_values_that_are_not_numbers_are_wrong():
    network, example = layer_case("1x1")
    reference = verification.make_reference(network, verification.varied_inputs(example, 2))
    with pytest.raises(ExportError, match="got an error of inf at batch 2"):
        verification.verify(lambda x: network(x).detach() * torch.nan, reference, (2,), "it")


class Branching(nn.Module):
    """Takes one of two ways by what it sees, which no graph can; both give the same."""

    def __init__(self):
        super().__init__()
        self.conv = CONV

    def forward(self, x):
        y = self.conv(x)
        return y + 0 if y.sum() > 0 else y


def test_what_an_exporter_cannot_write_is_one_sentence_and_no_file(tmp_path):
    message = r"`model` must consist of operations that the exporter for torch.export knows, got .*: try another format"
    with pytest.raises(ExportError, match=message) as error:
        export(Branching(), tmp_path / "n.pt2", format="torch-export", example_input=IMAGE)
    assert len(str(error.value).splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_is_not_the_networks_fault(tmp_path, monkeypatch):
    def write(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.export, "save", write)
    with pytest.raises(UsageError, match=r"^no space left on the disk for .*n.pt2; nothing was written: free some"):
        export(CONV, tmp_path / "n.pt2", format="torch-export", example_input=IMAGE)
    assert not [*tmp_path.iterdir()]


LIMITED = """
import resource, sys
import torch
from condconv.export import export

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    export(torch.nn.Conv2d(3, 20, 3), sys.argv[1], format="torch-export", example_input=torch.randn(1, 3, 6, 6))
except ValueError as error:
    print(error)
"""


def test_a_file_that_may_not_be_written_does_not_end_the_process(tmp_path):
    """In another process: torch's own writer of files aborts it."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "n.pt2")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert re.match(r"no file may be written to .*; nothing was written: raise the limit", run.stdout)
    assert not [*tmp_path.iterdir()]


LIMITED_OPENVINO = """
import resource, sys
import openvino, torch
from condconv.export import export

save_model = openvino.save_model
def save_limited(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save_model(*arguments, **options)

openvino.save_model = save_limited
model = torch.nn.Conv2d(3, 2000, 3)
try:
    export(model, sys.argv[1], format="openvino", example_input=torch.randn(1, 3, 6, 6))
except ValueError as error:
    print(error)
"""


def test_openvinos_weights_that_may_not_be_written_are_not_the_networks_fault(tmp_path):
    pytest.importorskip("openvino")
    run = subprocess.run(
        [sys.executable, "-c", LIMITED_OPENVINO, str(tmp_path / "n.xml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "no file may be written to" in run.stdout
    assert not [*tmp_path.iterdir()]


class Failing(nn.Module):
    def forward(self, x):
        return {}["x"]


def test_a_network_that_fails_is_named_whatever_it_raises(tmp_path):
    with pytest.raises(UsageError, match="`example_input` must be a batch that the model takes, got .*: 'x'"):
        export(Failing(), tmp_path / "n.pt2", format="torch-export", example_input=IMAGE)


def test_rounding_that_hides_routing_is_told(tmp_path):
    """Features differ by a part in a million of what they are: the difference of two is mostly rounding."""
    network, example = layer_case("1x1")
    layer = network[0]

    class Cancelling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return (self.layer(x) + 1e6) - 1e6

    found = verification.make_reference(Cancelling().eval(), verification.varied_inputs(example, 4))
    assert "own error in fp32 is" in found.blind
    assert "which hides that, and the check could not tell a file that mixes examples up" in found.blind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": ["a"]}, "`class_names` must have one name for each output, 3, got 1"),
        ({"class_names": {"a", "b", "c"}}, "`class_names` must be a sequence of names, got a set: give a list"),
        ({"class_names": [0, 1, 2]}, "`class_names` must be texts, got 0: give str(...) of it"),
        ({"preprocessing": {"size": 8}}, "`preprocessing` must have size, mean, std, got no 'mean': add it"),
        ({"class_names": "abc"}, "`class_names` must be a sequence of names, got the text 'abc'"),
        (
            {"example_input": torch.zeros(1, 5, 8, 8)},
            "`example_input` must be a batch that the model takes, got [B, 5, 8, 8]",
        ),
        ({"example_input": (1, 2, 8, 8)}, "`example_input` must be a tensor [B, C, ...], got a tuple"),
    ],
)
def test_what_the_network_cannot_take_or_give(tmp_path, arguments, message):
    network = nn.Sequential(condconv.CondConv2d(2, 3, 1, num_experts=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError) as error:
        export(
            network,
            tmp_path / "x.pt2",
            format="torch-export",
            **{"example_input": torch.zeros(1, 2, 8, 8), **arguments},
        )
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_an_export_copies_the_network_once(tmp_path, monkeypatch, weights):
    network, example = small_network()
    before = {name: each.clone() for name, each in network.state_dict().items()}
    copies, deepcopy = [], copy.deepcopy

    def counted(value, memo=None):
        if isinstance(value, nn.Module) and len([*value.modules()]) > len([*network.modules()]) / 2:
            copies.append(type(value).__name__)
        return deepcopy(value, memo)

    monkeypatch.setattr(copy, "deepcopy", counted)
    options = {"dynamic_size": True, "weights": weights}
    export(network, tmp_path / "n.pt2", format="torch-export", example_input=example, **options)
    assert copies == [type(network).__name__]
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(each.requires_grad for each in network.parameters())
