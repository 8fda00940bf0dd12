"""TensorFlow's files: what a path may be, and what is said of damaged ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from condconv.errors import MissingExtraError, UsageError
from condconv.weights.tensorflow import is_tensorflow_checkpoint, read_tensorflow_checkpoint

from .author import (
    save,
)


def test_reading(checkpoint) -> None:
    read = read_tensorflow_checkpoint(checkpoint)
    assert list(read) == ["a/kernel", "global_step", "half"]
    np.testing.assert_array_equal(read["a/kernel"], np.array([[0, 1, 2], [3, 4, 5]], np.float32))
    assert read["a/kernel"].dtype == np.float32
    assert read["global_step"].dtype == np.int64
    assert read["global_step"].shape == ()
    assert read["half"].astype(np.float32).tolist() == [0.5, 3.0]


def test_what_a_path_may_be(copy) -> None:
    files = [Path(f"{copy}.index"), Path(f"{copy}.data-00000-of-00001")]
    for path in (copy, str(copy), *files, copy.parent):
        assert is_tensorflow_checkpoint(path)
        assert read_tensorflow_checkpoint(path)["global_step"] == 5


def test_what_is_no_checkpoint(tmp_path) -> None:
    (tmp_path / "model.pth").write_bytes(b"PK")
    for path in (tmp_path / "model.pth", tmp_path / "absent", tmp_path / "absent.index", tmp_path):
        assert not is_tensorflow_checkpoint(path)
    with pytest.raises(
        UsageError, match=r"`path` must be a TensorFlow checkpoint, got .*absent': there is no file .*\.in"
    ):
        read_tensorflow_checkpoint(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"`path` must be a folder with one TensorFlow checkpoint, got .* with none"):
        read_tensorflow_checkpoint(tmp_path)


def test_folder_with_several(tf, copy) -> None:
    folder = copy.parent
    save(tf, folder / "model.ckpt-9", {"global_step": np.int64(9)})
    assert not is_tensorflow_checkpoint(folder)
    several = r"with 2 \(model\.ckpt-5, model\.ckpt-9\): give the prefix of one"
    with pytest.raises(UsageError, match=several):
        read_tensorflow_checkpoint(folder)
    state = folder / "checkpoint"
    # As TensorFlow writes it, relative or with the folder in which it was trained.
    for prefix, steps in (("model.ckpt-9", 9), ("/elsewhere/run/model.ckpt-5", 5)):
        state.write_text(f'model_checkpoint_path: "{prefix}"\nall_model_checkpoint_paths: "model.ckpt-1"\n')
        assert is_tensorflow_checkpoint(folder)
        assert read_tensorflow_checkpoint(folder)["global_step"] == steps
    for text in ('model_checkpoint_path: "model.ckpt-1"\n', ""):
        state.write_text(text)
        with pytest.raises(UsageError, match=several):
            read_tensorflow_checkpoint(folder)


@pytest.mark.parametrize("part", [".index", ".data-00000-of-00001"])
def test_damaged_files(copy, part) -> None:
    file = Path(f"{copy}{part}")
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], bytes([whole[0] ^ 255]) + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"`path` must be a whole TensorFlow checkpoint, got .*: copy its \.index"):
            read_tensorflow_checkpoint(copy)
    file.unlink()
    with pytest.raises(UsageError, match="`path` must be a"):
        read_tensorflow_checkpoint(copy)


def test_without_tensorflow(copy, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    assert is_tensorflow_checkpoint(copy)
    with pytest.raises(MissingExtraError, match=r'pip install "condconv\[tensorflow\]"'):
        read_tensorflow_checkpoint(copy)
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ


def test_a_variable_that_is_larger_than_the_network_is_not_read(checkpoint) -> None:
    with pytest.raises(UsageError, match=r"with 'a/kernel' of shape \(2, 3\), larger than the whole network: give"):
        read_tensorflow_checkpoint(checkpoint, 5)


def test_a_pipe_among_the_files_is_not_opened(copy) -> None:
    data = Path(f"{copy}.data-00000-of-00001")
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(
        UsageError, match=r"must be a TensorFlow checkpoint of regular files, got .*, a pipe or a device: "
    ):
        read_tensorflow_checkpoint(copy)


def test_a_state_without_end_names_no_checkpoint(copy) -> None:
    """Of three gigabytes, which are holes."""
    Path(f"{copy.with_name('other')}.index").write_bytes(b"")
    state = copy.parent / "checkpoint"
    state.write_text(f'model_checkpoint_path: "{copy.name}"\n')
    assert read_tensorflow_checkpoint(copy.parent)["global_step"] == 5
    os.truncate(state, 3 * 2**30)
    with pytest.raises(
        UsageError, match=r"a folder with one TensorFlow checkpoint, got .* with 2 \(.*: give the prefix of"
    ):
        read_tensorflow_checkpoint(copy.parent)
