"""Where files go, and what is there already."""

import pytest
import torch

from condconv.errors import UsageError
from condconv.export import FORMATS, export
from condconv.export.target import check_path, folder_beside, move
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


@pytest.mark.parametrize("length", [250, 300])  # 255 are allowed: the file is, and the folder beside it is not
def test_a_place_that_takes_no_files_is_refused(tmp_path, length):
    """A name that is too long stands for a directory without permission: root may write to any."""
    network, example = small_network()
    path = tmp_path / ("n" * (length - 4) + ".pt2")
    with pytest.raises(UsageError, match=r"`path` must be where files can be made, got .*: take another directory"):
        export(network, path, format="torch-export", example=example)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("old", ["nothing", "file", "directory"])
def test_a_package_replaces_what_has_its_name(tmp_path, old):
    """CoreML's are directories."""
    path = tmp_path / "n.mlpackage"
    if old == "file":
        path.write_text("old")
    elif old == "directory":
        path.mkdir()
        (path / "stale").write_text("old")
    check_path(path, "coreml", ".mlpackage")
    with folder_beside(path) as folder:
        (folder / path.name).mkdir()
        (folder / path.name / "new").write_text("new")
        move(folder, tmp_path)
    assert [*tmp_path.rglob("*")] == [path, path / "new"]


def test_a_file_replaces_the_one_before(tmp_path):
    network, example = small_network()
    path = tmp_path / "n.pt2"
    path.write_text("the file before")
    export(network, path, format="torch-export", example=example, verify=False)
    run = FORMATS["torch-export"].load(path)
    assert run(torch.zeros(5, *example.shape[1:])).shape == (5, 4)
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_is_written_through(tmp_path):
    network, example = small_network()
    (tmp_path / "kept").mkdir()
    link = tmp_path / "n.pt2"
    link.symlink_to(tmp_path / "kept" / "real.pt2")
    export(network, link, format="torch-export", example=example, verify=False)
    assert link.is_symlink()
    assert FORMATS["torch-export"].load(tmp_path / "kept" / "real.pt2")(torch.zeros_like(example)).shape[1] == 4
    other = tmp_path / "other.pt2"
    other.symlink_to(tmp_path / "kept" / "blob")
    with pytest.raises(UsageError, match=r"must end in .pt2 for torch-export, got .*kept/blob"):
        export(network, other, format="torch-export", example=example, verify=False)
