"""Where files go, and what is there already."""

import os

import pytest
import torch

from condconv.errors import UsageError
from condconv.export import FORMATS, export
from condconv.export.arguments import check_path
from tests.export.cases import small_network


def refusal(path, format):
    with pytest.raises(UsageError) as error:
        check_path(path, format, FORMATS[format].SUFFIX)
    return str(error.value)


def test_paths_that_cannot_become_the_file(tmp_path):
    named = tmp_path / "n.onnx"
    assert refusal(tmp_path / "n.pt2", "onnx").endswith("n.pt2: name it n.onnx")
    assert refusal(tmp_path.__class__(""), "onnx") == "`path` must end in .onnx for onnx, got .: name it network.onnx"
    assert "`path` must be in a directory that exists, got" in refusal(tmp_path / "no" / "n.onnx", "onnx")
    named.mkdir()
    assert refusal(named, "onnx") == f"`path` must be a file, got the directory {named}: take another name"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_not_replaced(tmp_path):
    pipe, link = tmp_path / "n.pt2", tmp_path / "l.pt2"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        said = refusal(path, "torch-export")
        assert said == f"`path` must be a file, got a pipe or a device, {path}: take another name, and copy the file"


def test_a_name_that_is_too_long_is_refused(tmp_path):
    network, example = small_network()
    with pytest.raises(UsageError, match=r"`path` must be a path that can be used, got .*too long\): give another"):
        export(network, tmp_path / ("n" * 296 + ".pt2"), format="torch-export", example_input=example)
    assert not [*tmp_path.iterdir()]


def test_a_place_that_takes_no_files_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):  # a stand-in for a directory without permission: root may write to any
        raise PermissionError(13, "Permission denied")

    network, example = small_network()
    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    with pytest.raises(UsageError, match=r"`path` must be where files can be written, got .*\(Permission denied\)"):
        export(network, tmp_path / "n.pt2", format="torch-export", example_input=example)
    assert not [*tmp_path.iterdir()]


def test_a_file_replaces_the_one_before(tmp_path):
    network, example = small_network()
    path = tmp_path / "n.pt2"
    path.write_text("the file before")
    export(network, path, format="torch-export", example_input=example, verify=False)
    run = FORMATS["torch-export"].load(path)
    assert run(torch.zeros(5, *example.shape[1:])).shape == (5, 4)
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_is_written_through(tmp_path):
    network, example = small_network()
    (tmp_path / "kept").mkdir()
    link = tmp_path / "n.pt2"
    link.symlink_to(tmp_path / "kept" / "real.pt2")
    export(network, link, format="torch-export", example_input=example, verify=False)
    assert link.is_symlink()
    assert FORMATS["torch-export"].load(tmp_path / "kept" / "real.pt2")(torch.zeros_like(example)).shape[1] == 4
    other = tmp_path / "other.pt2"
    other.symlink_to(tmp_path / "kept" / "blob")
    with pytest.raises(UsageError, match=r"must end in .pt2 for torch-export, got .*kept/blob"):
        export(network, other, format="torch-export", example_input=example, verify=False)
