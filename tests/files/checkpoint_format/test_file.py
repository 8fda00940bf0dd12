"""Damage, whatever bytes it hits, is noticed; and only files are opened."""

import hashlib
import json
import os
import struct
import threading

import pytest
import torch

from condconv.errors import UsageError
from condconv.files.checkpoint_format import FORMAT, open_checkpoint, to_bytes
from tests.files.checkpoint_format.samples import forge, header, tensors

ALL = ("model", "ema", "optimizer", "group")


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(to_bytes(header(), tensors()))
    return tmp_path / "a.safetensors"


def read(path):
    stored = open_checkpoint(path)
    return stored.header, stored.read(*ALL)


def test_what_is_written_is_read(path):
    found, read_back = read(path)
    assert {name: each for name, each in found.items() if name not in ("format", "digests")} == header()
    assert read_back.keys() == tensors().keys()
    for name, each in tensors().items():
        assert torch.equal(each, read_back[name])
        assert each.dtype == read_back[name].dtype


def test_every_flipped_byte_is_noticed(path):
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    end_of_json = whole[:start].rindex(b"}")  # spaces fill up the header to a multiple of eight
    for position in [*range(0, 24), *range(24, end_of_json + 1, 31), *range(start, len(whole), 7)]:
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(UsageError, match="`checkpoint` must ") as caught:
                read(path)
            if position >= start:
                assert "must be as it was written, got" in str(caught.value)
                assert "damaged in its tensors: take another copy, or train again" in str(caught.value)


@pytest.mark.parametrize("what", ["zeroed", "swapped", "renamed", "of another shape", "of another type"])
def test_other_tensors_under_the_same_digests(tmp_path, path, what):
    digests = open_checkpoint(path).header["digests"]
    others = tensors()
    weight = others["model.a.weight"]
    if what == "zeroed":
        weight[1] = 0
    elif what == "swapped":
        others["model.a.weight"], others["ema.a.weight"] = others["ema.a.weight"], weight
    elif what == "renamed":
        others["model.b.bias"] = others.pop("model.a.bias")
    elif what == "of another shape":
        others["model.a.weight"] = weight.reshape(4, 3)
    else:
        others["model.a.weight"] = weight.view(torch.int32)
    with pytest.raises(UsageError, match="damaged in its tensors"):
        read(forge(tmp_path / "b.safetensors", header(digests=digests), others))


def test_a_part_that_is_not_read_may_be_damaged(path):
    content = path.read_bytes()
    exp_avg = tensors()["optimizer.0.exp_avg"].view(torch.int16).numpy().tobytes()
    path.write_bytes(content.replace(exp_avg, bytes(len(exp_avg))))
    kept = {name for name in tensors() if name.startswith(("model", "ema"))}
    assert open_checkpoint(path).read("model", "ema").keys() == kept
    with pytest.raises(UsageError, match="damaged in its tensors"):
        open_checkpoint(path).read("optimizer", "group")


def test_a_part_that_the_header_does_not_know(tmp_path):
    digests = {"model": "0" * 64}
    with pytest.raises(UsageError, match="damaged in its list of tensors"):
        open_checkpoint(forge(tmp_path / "b.safetensors", header(digests=digests), tensors()))


@pytest.mark.parametrize("part", ALL)
def test_a_tensor_that_is_called_as_a_part_is_of_no_network(tmp_path, part):
    """Nothing would compare its shape: it could be of any size."""
    path = forge(tmp_path / "b.safetensors", header(), {**tensors(), part: torch.zeros(9)})
    with pytest.raises(UsageError, match="damaged in its list of tensors"):
        open_checkpoint(path)


def test_a_file_of_holes_takes_no_memory(tmp_path):
    """A terabyte that takes a few kilobytes of the disk."""
    table = {"model.a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    text = json.dumps({"format": FORMAT, "digests": {"model": "0" * 64}, **header()})
    metadata = {"condconv": text, "condconv.sha256": hashlib.sha256(text.encode()).hexdigest()}
    start = json.dumps({"__metadata__": metadata, **table}).encode()
    path = tmp_path / "b.safetensors"
    path.write_bytes(struct.pack("<Q", len(start)) + start)
    try:
        os.truncate(path, 8 + len(start) + 2**40)
    except OSError:
        pytest.skip("the file system has no files as large")
    if 600 * path.stat().st_blocks > path.stat().st_size:
        pytest.skip("the file system has no holes")
    with pytest.raises(UsageError, match=r"must be a whole safetensors file, got .* \(most of it is holes\)"):
        open_checkpoint(path).read("model")


def test_a_file_that_may_not_be_read(path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(
        UsageError, match=r"must be a file that can be read, got .* \(Permission denied\): check its per"
    ):
        open_checkpoint(path)


def test_what_cannot_be_read_again_is_not_written():
    wrongs: list[dict] = [
        {"class_names": []},
        {"train_images": float("nan")},
        {"scaler": {"a": {1, 2}}},
        {"kind": "other"},
    ]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="`header` must hold plain values within the format's bounds, got"):
            to_bytes(header(**wrong), tensors())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "must have a header in JSON, got"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "must have a header in JSON, got"),
        ('{"format": 5, "format": 5}', "a name is there twice"),
        ('{"format": ' + "9" * 5_000 + "}", "must have a header in JSON, got"),
        ("null", "with format None"),
        ('{"format": "5"}', "with format '5'"),
        ('{"format": 6}', "`kind` must be one of 'classifier', 'detector', got None: take another copy"),
    ],
)
def test_headers_that_are_none(tmp_path, text, message):
    with pytest.raises(UsageError, match="`checkpoint` must have ") as caught:
        open_checkpoint(forge(tmp_path / "a.safetensors", text, tensors()))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_kind_that_is_not_asked_for(path):
    with pytest.raises(UsageError, match=r"must be of a detector, got .*a\.safetensors of a classifier"):
        open_checkpoint(path, "detector")


def test_a_header_longer_than_any_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000) + b"{" + b" " * 100)
        file.truncate(90_000_008)
    with pytest.raises(UsageError, match="its header would have 90000000 bytes"):
        open_checkpoint(path)


def test_only_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    failures = []

    def try_all():
        for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, "/dev/stdin/x", "a\0b", tmp_path / ("x" * 300)):
            try:
                open_checkpoint(path)
            except UsageError as error:
                failures.append(str(error))

    thread = threading.Thread(target=try_all, daemon=True)
    thread.start()
    thread.join(10)  # a pipe that is opened waits for a writer
    assert len(failures) == 6
    assert all("`checkpoint` must be a " in each for each in failures)


def test_an_older_version_says_to_train_again(tmp_path):
    text = json.dumps({"format": 3, "config": {}})
    with pytest.raises(UsageError, match="with format 3: train again, or use the version that wrote it"):
        open_checkpoint(forge(tmp_path / "a.safetensors", text, {"model.a": torch.zeros(1)}))


def test_a_shape_that_no_memory_has_is_no_whole_file_even_without_values(tmp_path):
    header = b'{"model.w":{"dtype":"F32","shape":[3,0,9223372036854775809],"data_offsets":[0,0]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UsageError, match=r"'model\.w' has shape \(3, 0, 9223372036854775809\)"):
        open_checkpoint(tmp_path / "a.safetensors")
