"""What files may be, and what is said of those that cannot be read."""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import condconv
from condconv.errors import UsageError
from condconv.files.checkpoint_format import to_bytes
from condconv.weights import load_pretrained, load_state_dict
from condconv.weights.files import read_file
from condconv.weights.layers import Layers
from condconv.weights.source import find_source
from tests.files.checkpoint_format.samples import header

from .networks import copy_of, randomise, small


def read_state_dict(path: Path, averaged: bool = True) -> dict[str, torch.Tensor]:
    return find_source(read_file(path, 2**24), "x", Layers(torch.nn.Identity()), averaged).tensors


def test_wrapped_checkpoints(tmp_path: Path) -> None:
    """Weights stand under several names in training scripts' files; averaged ones are taken where asked for."""
    plain, averaged = small().state_dict(), small().state_dict()
    path = tmp_path / "checkpoint.pth.tar"
    for name in ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params"):
        torch.save({"epoch": 3, "optimizer": {"state": {}}, name: plain, "arch": "x"}, path)
        assert torch.equal(read_state_dict(path)["stem.weight"], plain["stem.weight"])
    for name in ("state_dict_ema", "model_ema", "ema_state_dict", "ema"):
        torch.save({"state_dict": plain, name: averaged}, path)
        assert torch.equal(read_state_dict(path)["stem.weight"], averaged["stem.weight"])
        assert torch.equal(read_state_dict(path, averaged=False)["stem.weight"], plain["stem.weight"])
    torch.save(OrderedDict((f"module.model.{name}", value) for name, value in plain.items()), path)
    report = load_pretrained(small(2), path)
    assert "without 'module.model.'" in report.matched
    assert report.source == str(path)


def test_what_training_scripts_put_beside_the_weights(tmp_path: Path) -> None:
    """Arguments of timm's and torchvision's scripts, numpy's numbers, a nested and an averaged model."""
    state, path = small().state_dict(), tmp_path / "run.pth.tar"
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in state.items()}
    for content in (
        {"state_dict": state, "args": argparse.Namespace(lr=0.1), "metric": np.float64(0.7)},
        {"model": {"state_dict": state}},
        {"model": state, "model_ema": averaged},
    ):
        torch.save(content, path)
        load_pretrained(small(2), path)
        model = small(2)
        load_state_dict(model, content)  # in memory too
        assert torch.equal(model.stem.weight, state["stem.weight"])


def test_safetensors_folders_and_checkpoints_of_ours(tmp_path: Path) -> None:
    torch_io = pytest.importorskip("safetensors.torch")
    state = {name: value.contiguous() for name, value in small().state_dict().items()}
    torch_io.save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert set(read_state_dict(path)) == set(state)
    ours = {f"model.{name}": value for name, value in state.items()} | {"optimizer.0.momentum": torch.zeros(3)}
    (tmp_path / "last.safetensors").write_bytes(to_bytes(header(), ours))
    assert set(read_state_dict(tmp_path / "last.safetensors")) == set(state)


def test_the_first_bytes_count_not_the_suffix(tmp_path: Path) -> None:
    torch_io = pytest.importorskip("safetensors.torch")
    state = small().state_dict()
    torch_io.save_file(state, tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "model.pt.safetensors")
    torch.save(state, tmp_path / "old.weights", _use_new_zipfile_serialization=False)
    for name in ("", "pytorch_model.bin", "model.pt.safetensors", "old.weights"):
        assert set(read_state_dict(tmp_path / name)) == set(state)


def test_sorted_names_of_safetensors_keep_the_order_of_layers(tmp_path: Path) -> None:
    """`features.10` sorts before `features.2`; layers are matched in the order in which they run all the same."""
    torch_io = pytest.importorskip("safetensors.torch")
    models = pytest.importorskip("torchvision").models
    source = randomise(models.mobilenet_v2(num_classes=10))
    state = dict(sorted(source.state_dict().items()))
    torch_io.save_file(state, tmp_path / "v2.safetensors")
    model = condconv.create_model("mobilenet_v2_100", num_classes=10).eval()
    report = load_pretrained(model, tmp_path / "v2.safetensors")
    assert report.matched == "by kind and order"
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), source(x), rtol=1e-4, atol=1e-4)


class Stranger:
    """What a pickle may hold that must not be run."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


def refusal(path: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_pretrained(small(), path)
    message = str(caught.value)
    assert len(message) < 600
    return message


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, old = tmp_path / "whole.pth", tmp_path / "old.pth"
    torch.save(small().state_dict(), whole)
    torch.save(small().state_dict(), old, _use_new_zipfile_serialization=False)
    cases = {
        "cut.pth": (whole.read_bytes()[:1000], "must be a whole file written by torch.save, got '"),
        # In the number that begins it, in names, and in the values.
        **{
            f"cut {size}.pth": (old.read_bytes()[:size], "it is truncated or of another kind; take another copy")
            for size in (3, 30, 700, -20)
        },
        "empty.pth": (b"", "it is empty: take another copy"),
        "text.pth": (b"hello", "it is of no kind that is known, beginning with b'hello'"),
        "code.pth": (pickle.dumps({"x": Stranger()}), "must be a whole file written by torch.save"),
        "cut.safetensors": (b"\x10\x00\x00", "it is of no kind that is known, beginning with b'\\x10\\x00\\x00'"),
        "cut too.safetensors": (b"\x10" + bytes(7) + b'{"a"', "must be a whole safetensors file, got '"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        said = refusal(tmp_path / name)
        assert message in said
        assert repr(str(tmp_path / name)) in said
    torch.save({"x": Stranger()}, tmp_path / "code.pth")
    assert "must hold tensors and plain values only" in refusal(tmp_path / "code.pth")
    assert "with print: loading it could run foreign code" in refusal(tmp_path / "code.pth")
    torch.save(small(), tmp_path / "network.pth")
    assert "SmallNet: loading it could run foreign code" in refusal(tmp_path / "network.pth")
    assert "ran" not in capsys.readouterr().out


def test_paths_and_contents_without_weights(tmp_path: Path) -> None:
    assert "must be an existing file of weights, got '" in refusal(tmp_path / "missing.pth")
    assert "must be a file of weights or a folder with model.safetensors, got '" in refusal(tmp_path)
    path = tmp_path / "none.pth"
    for content, what in (
        ({"epoch": 3, "lr": 0.1}, "with a mapping with epoch, lr: save model.state_dict()"),
        ({}, "with an empty mapping"),
        ([1, 2], "with list"),
        (torch.zeros(3), "with Tensor"),
    ):
        torch.save(content, path)
        assert f"must hold tensors by name, got {str(path)!r} {what}" in refusal(path)


# First bytes, and what is said of them.
OTHER_KINDS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "a Git LFS pointer, not"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page, as a failed download leaves it"),
    "page with a mark": (b"\xef\xbb\xbf<HTML>", "an HTML page"),
    "feed": (b"<?xml version='1.0'?><Error/>", "an XML page"),
    "gzip": (gzip.compress(b"weights"), "compressed with gzip: unpack it first"),
    "bzip2": (bz2.compress(b"weights"), "compressed with bzip2: unpack it first"),
    "xz": (lzma.compress(b"weights"), "compressed with xz: unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd rest", "compressed with zstd: unpack it first"),
    "keras": (b"\x89HDF\r\n\x1a\n rest", "an HDF5 file, as Keras writes"),
    "numpy": (b"\x93NUMPY\x01\x00", "an array of numpy's"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_kinds_of_files_are_named(kind: str, suffix: str, tmp_path: Path) -> None:
    content, message = OTHER_KINDS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert f"must be a file of torch's or safetensors, got {str(path)!r}: it is {message}" in refusal(path)


def test_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.write(tmp_path / "a.txt", "a/a.txt")
    assert "it is a zip archive that torch.save did not write: unpack it first" in refusal(tmp_path / "zip.pth")
    with tarfile.open(tmp_path / "weights.tar", "w") as archive:
        archive.add(tmp_path / "a.txt")
    assert "it is a tar archive: unpack it first" in refusal(tmp_path / "weights.tar")


@pytest.mark.filterwarnings("ignore:`?torch.jit")
def test_scripted_networks_are_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 4, 3)), tmp_path / "scripted.pt")
    assert "is a TorchScript archive: save torch.jit.load(...).state_dict()" in refusal(tmp_path / "scripted.pt")


def test_a_safetensors_file_may_begin_as_a_pickle(tmp_path: Path) -> None:
    """The length of the header comes first, and 128 is what pickles begin with."""
    torch_io = pytest.importorskip("safetensors.torch")
    for size in range(128):
        content = torch_io.save({"a.weight": torch.ones(2)}, {"note": "x" * size})
        if content[:8] == b"\x80" + bytes(7):
            break
    assert content[:1] == b"\x80"
    (tmp_path / "weights.bin").write_bytes(content)
    assert read_state_dict(tmp_path / "weights.bin")["a.weight"].tolist() == [1, 1]


def test_what_a_path_must_not_be(tmp_path: Path) -> None:
    state = small().state_dict()
    assert "got a OrderedDict: for tensors in memory use condconv.weights.load_state_dict" in refusal(state)
    for path in (None, 3, b"x.pth", small()):
        assert "`path` must be a string or a Path, or a list of them, got " in refusal(path)
    assert "`path` must be a list of strings or Paths, got None in it" in refusal(["x.pth", None])
    assert "must be an existing file of weights, got 'x\\x00y'" in refusal("x\0y")


def test_what_a_state_must_not_be() -> None:
    for state, remedy in (("x.pth", "use load_pretrained"), (small(), "give what its state_dict() returns")):
        with pytest.raises(UsageError, match="`state` must be a mapping of names to tensors, got .*" + remedy[:12]):
            load_state_dict(small(2), state)
    with pytest.raises(UsageError, match="must hold tensors by name, got state dict with a mapping with a.weight"):
        load_state_dict(small(2), {"a.weight": np.zeros(3)})


def test_what_the_system_refuses_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save(small().state_dict(), path)
    assert f"must be a file that can be read, got '{'x' * 400}' (File name too long)" in refusal("x" * 400)

    def fails(*args: Any, **options: Any) -> None:
        raise error

    error: Exception = PermissionError(13, "Permission denied")
    monkeypatch.setattr(torch, "load", fails)
    assert f"must be a file that can be read, got {str(path)!r} (Permission denied)" in refusal(path)
    error = MemoryError()
    with pytest.raises(MemoryError):
        load_pretrained(small(2), path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_values(tmp_path: Path) -> None:
    """Sparse ones are made dense, those without values are refused, and nothing is changed."""
    source = small()
    state = source.state_dict()
    model = small(2)
    load_state_dict(model, state | {"stem.weight": state["stem.weight"].to_sparse()})
    assert torch.equal(model.stem.weight, source.stem.weight)
    before = copy_of(model)
    weight = state["blocks.0.pointwise.weight"]
    for tensor, message in (
        (weight.to("meta"), "got state dict with no values, on the meta device, in 'blocks.0.pointwise.weight'"),
        (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "with quantized ones, torch.qint8, in 'blocks.0"),
        (weight.char(), "not of real numbers: blocks.0.pointwise.weight (torch.int8)"),
        (weight.to(torch.complex64), "not of real numbers: blocks.0.pointwise.weight (torch.complex64)"),
    ):
        with pytest.raises(UsageError) as caught:
            load_state_dict(model, state | {"blocks.0.pointwise.weight": tensor})
        assert message in str(caught.value)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("optimizer", [{}, {"optimizer.0.momentum": torch.zeros(3)}], ids=["plain", "momentum"])
def test_a_checkpoint_to_resume_from_gives_its_averaged_network(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    path = tmp_path / "last.safetensors"
    tensors = {"model.weight": torch.zeros(2), "ema.weight": torch.ones(2)} | optimizer
    pytest.importorskip("safetensors")
    path.write_bytes(to_bytes(header(), tensors))
    assert read_state_dict(path)["weight"].tolist() == [1, 1]
    assert read_state_dict(path, averaged=False)["weight"].tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:Validating sparse tensor invariants")
def test_tensors_larger_than_the_network_take_no_memory(tmp_path: Path) -> None:
    """A sparse tensor, and a file with holes, name terabytes in a few bytes."""
    huge = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2**20, 2**20))
    state = {**small().state_dict(), "stem.weight": huge}
    torch.save(state, tmp_path / "sparse.pth")
    for refuse in (
        lambda: load_pretrained(small(2), tmp_path / "sparse.pth"),
        lambda: load_state_dict(small(2), state),
    ):
        with pytest.raises(
            UsageError, match=r"with 'stem.weight' of shape \(1048576, 1048576\), larger than the whole"
        ):
            refuse()
    pytest.importorskip("safetensors")
    for metadata in ({}, {"__metadata__": {"note": "x"}}):
        table = {**metadata, "stem.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        text = json.dumps(table).encode()
        with (tmp_path / "holes.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 2**42)
        with pytest.raises(UsageError, match=r"with 'stem.weight' of shape \(1099511627776,\), larger than the whole"):
            load_pretrained(small(2), tmp_path / "holes.safetensors")


def test_a_damaged_checkpoint_of_ours_is_not_loaded(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    state = {f"model.{name}": value for name, value in small().state_dict().items()}
    content = bytearray(to_bytes(header(), state))
    content[-9] ^= 1
    (tmp_path / "best.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="`path` must be as it was written, got .*damaged in its tensors"):
        load_pretrained(small(), tmp_path / "best.safetensors")


def test_a_pickle_with_holes_is_not_read(tmp_path, monkeypatch):
    """Of each kind: a terabyte that takes a few bytes of the disk."""
    network = torch.nn.Linear(2, 2)
    for name, options in (("a.pth", {}), ("b.pth", {"_use_new_zipfile_serialization": False})):
        torch.save(network.state_dict(), tmp_path / name, **options)
        try:
            os.truncate(tmp_path / name, 2**40)
        except OSError:
            pytest.skip("the file system has no files as large")
        if (tmp_path / name).stat().st_blocks * 512 > 2**30:
            pytest.skip("the file system has no holes")
        monkeypatch.setattr(torch, "load", None)
        with pytest.raises(UsageError, match="of 1,048,576 MiB, most of which are holes: take another"):
            load_pretrained(network, tmp_path / name)


def test_many_tensors_of_holes_are_not_read(tmp_path: Path) -> None:
    """Each is as large as the network's, and all together take a gigabyte."""
    pytest.importorskip("safetensors")
    network, size, count = torch.nn.Linear(1024, 1024), 2**20, 256
    table = {
        f"a{index}": {"dtype": "F32", "shape": [size], "data_offsets": [4 * index * size, 4 * (index + 1) * size]}
        for index in range(count)
    }
    text = json.dumps(table).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 4 * count * size)
    if 512 * path.stat().st_blocks > 2**28:
        pytest.skip("the file system has no holes")
    with pytest.raises(UsageError, match="MiB, most of which are holes: take another copy"):
        load_pretrained(network, path)


def test_a_damaged_zip_archive_is_not_loaded(tmp_path: Path) -> None:
    """Torch reads other weights from it without a word."""
    network = small()
    path = tmp_path / "a.pth"
    torch.save(network.state_dict(), path)
    whole = path.read_bytes()
    position = whole.index(network.stem.weight.detach().numpy().tobytes())
    path.write_bytes(whole[: position + 3] + bytes([whole[position + 3] ^ 1]) + whole[position + 4 :])
    with pytest.raises(
        UsageError, match=r"must be as it was written, got .*, damaged in '.*data/\d+': take another copy"
    ):
        load_pretrained(small(), path)


def test_a_zip_archive_without_checksums_is_loaded(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(small().state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    load_pretrained(small(), tmp_path / "a.pth")


def test_archives_whose_table_is_damaged(tmp_path: Path) -> None:
    """A bit of any byte of the table of members or of the headers before them: read, or refused in one sentence."""
    path = tmp_path / "network.pth"
    torch.save({"weight": torch.ones(3), "bias": torch.ones(2)}, path)
    whole = path.read_bytes()
    table = whole.index(b"PK\x01\x02")
    refused = []
    for at in [*range(0, 60, 2), *range(table, len(whole), 3)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            read_file(path, 2**10)
        except UsageError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(re.match(r"`path` must .*, got .*: ", each) for each in refused)


def _with(whole: bytes, changes: dict[int, int]) -> bytes:
    return bytes(changes.get(at, each) for at, each in enumerate(whole))


@pytest.mark.parametrize(
    "maul",
    [
        lambda whole: whole[:4] + b"\0" * 100 + whole[-22:],
        lambda whole: b"PK\x03\x04" + b"\0" * 26 + whole[whole.index(b"PK\x01\x02") :],
        lambda whole: _with(whole, {7: 8, 30: 255, whole.index(b"PK\x01\x02") + 9: 8}),
    ],
    ids=["no table", "a table only", "a name that is not UTF-8"],
)
def test_what_is_left_of_an_archive(tmp_path: Path, maul: Any) -> None:
    path = tmp_path / "network.pth"
    torch.save({"weight": torch.ones(3)}, path)
    path.write_bytes(maul(path.read_bytes()))
    with pytest.raises(UsageError, match="`path` must .*take another copy|unpack it first"):
        read_file(path, 2**10)
