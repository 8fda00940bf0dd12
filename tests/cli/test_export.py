import json
import re

import pytest

from condconv.cli.main import main
from condconv.errors import ExportError
from condconv.export import FORMATS, verification
from condconv.lab.saved import load_checkpoint
from tests.lab.samples import make_folder

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    root = make_folder(folder / "data")
    fixed = ["--image-size", "8", "--batch-size", "4", "--epochs", "1", "--device", "cpu"]
    fixed += ["--model-option", "first_layer=14"]  # a few layers to rewrite
    argv = ["train", "--data", str(root), "-o", str(folder / "run"), "--model", "mobilenet_v1_cc_025_2e", *fixed]
    assert main(argv) == 0
    return folder / "run" / "best.safetensors"


def fails(capsys, argv, status):
    assert main([str(each) for each in argv]) == status
    return capsys.readouterr().err


@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_checkpoint_becomes_a_file(checkpoint, tmp_path, capsys, format):
    path = tmp_path / f"n{FORMATS[format].SUFFIX}"
    assert main(["export", str(checkpoint), "--format", format, "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^batch    any$", said, re.MULTILINE)
    assert re.search(r"^verified yes", said, re.MULTILINE)
    found = FORMATS[format].inspect(path)
    loaded = load_checkpoint(checkpoint)
    assert json.loads(found.metadata["class_names"]) == list(loaded.class_names)
    facts = json.loads(found.metadata["preprocessing"])
    assert facts == loaded.preprocessing.facts()
    assert (facts["size"], facts["channels"], facts["crop"]) == (8, 3, 1.0)


def test_a_fixed_batch_and_chosen_forms(checkpoint, tmp_path, capsys):
    path = tmp_path / "n.pt2"
    options = ["--batch", "2", "--form", "*=esum", "--weights", "int8"]
    assert main(["export", str(checkpoint), "--format", "torch-export", "-o", str(path), *options]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^batch    2, fixed$", said, re.MULTILINE)
    assert re.search(r"^weights  int8, error .* against float32$", said, re.MULTILINE)
    assert " bmm " not in said


@pytest.mark.slow
def test_a_largest_batch_and_a_file_that_is_not_run(checkpoint, tmp_path, capsys, monkeypatch):
    def run(path):
        raise AssertionError("the file was run")

    monkeypatch.setattr(FORMATS["torch-export"], "load", run)
    options = ["--max-batch", "3", "--no-verify"]
    assert main(["export", str(checkpoint), "--format", "torch-export", "-o", str(tmp_path / "n.pt2"), *options]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^batch    1 to 3$", said, re.MULTILINE)
    assert re.search(r"^verified no$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opset", "17"], "`opset` must lie between 18 and 23, got 17"),
        (["--max-batch", "1"], "`max_batch` must be at least 2, with a dynamic batch, got 1"),
        (["--batch", "0"], "`--batch` must be a whole number from 1 to 1,000,000, got 0"),
        (["--form", "esum"], "`--form` must be PATTERN=FORM, got 'esum'"),
        (["--batch", "1", "--dynamic-batch"], "`--dynamic-batch` must not be combined with `--batch`, got both"),
    ],
)
def test_wrong_options_end_with_status_2(checkpoint, tmp_path, capsys, options, message):
    argv = ["export", checkpoint, "--format", "onnx", "-o", tmp_path / "n.onnx", *options]
    assert message in fails(capsys, argv, 2)
    assert not [*tmp_path.iterdir()]


def test_a_wrong_file_ends_with_status_1(checkpoint, tmp_path, capsys, monkeypatch):
    def refuse(*arguments):
        raise ExportError("the file must compute what the network does")

    monkeypatch.setattr(verification, "verify", refuse)
    argv = ["export", checkpoint, "--format", "onnx", "-o", tmp_path / "n.onnx"]
    assert fails(capsys, argv, 1) == "condconv: export failed: the file must compute what the network does\n"
