import errno
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from condconv.errors import UsageError
from condconv.files.atomic import remove_leftovers, write_atomic, write_own, written_beside


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EFBIG, "no file of 0.0 MiB may be written to"),
        (errno.EIO, "`out` must be where files can be written, got .*last.safetensors \\(Input/output error\\)"),
    ],
)
def test_a_failing_disk_leaves_the_previous_file_and_nothing_else(tmp_path, monkeypatch, number, message):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match=message) as caught:
        write_atomic(path, b"new")
    assert "the previous last.safetensors is intact" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b" * 270, "it is too long"),
        ("c/" * 3000, "it is too long"),
        ("report\udce9.json", "it is not UTF-8"),
        ("a\0b", "it holds a null character"),
        ("circle/a", "Too many levels of symbolic links"),
        ("file/a", "Not a directory"),
    ],
)
def test_a_name_that_cannot_be_is_said_in_one_short_sentence(tmp_path, name, message):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UsageError, match=f"`out` must be .*, got .*{message}.*: ") as caught:
        write_atomic(tmp_path / name, b"new")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    assert {each.name for each in tmp_path.iterdir()} == {"file", "circle"}


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_a_name_as_long_as_the_system_allows_is_written(tmp_path, name):
    write_atomic(tmp_path / name, "new")
    with written_beside(tmp_path / name) as temporary:
        temporary.write_text("newer")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, "newer")]


@pytest.mark.parametrize("kind", ["link", "file", "directory"])
def test_what_lies_under_the_temporary_name_is_left_alone(tmp_path, monkeypatch, kind):
    """Whoever guesses the name, which takes seeing 64 random bits, gains nothing."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5" * 2 * size)
    planted, elsewhere = tmp_path / f".condconv-a.json-{'5' * 16}.tmp", tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    if kind == "link":
        planted.symlink_to(elsewhere)
    elif kind == "file":
        planted.write_text("theirs")
    else:
        planted.mkdir()
    with pytest.raises(UsageError, match="`out` must be where files can be written, got .*File exists"):
        write_atomic(tmp_path / "a.json", "ours")
    assert planted.is_dir() or planted.read_text() == elsewhere.read_text() == "theirs"
    assert planted.is_symlink() == (kind == "link")
    assert not (tmp_path / "a.json").exists()


def test_names_of_two_writers_differ(tmp_path, monkeypatch):
    """As of two hosts on one disk whose processes have one number."""
    seen: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.extend(each.name for each in tmp_path.glob(".*")))
    for _ in range(2):
        write_atomic(tmp_path / "a.json", "text")
    assert len({*seen}) == 2


def test_an_interruption_leaves_the_previous_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_a_mode_stays(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o600)


@pytest.mark.parametrize("target", ["theirs", "nothing", "/dev/null"])
def test_what_a_command_keeps_is_not_written_through_a_link(tmp_path, target):
    theirs, link = tmp_path / "theirs", tmp_path / "metrics.csv"
    theirs.write_text("old")
    link.symlink_to(target)
    with pytest.raises(UsageError, match=r"`out` must not have other things .*, got .*/metrics.csv, a link: remove it"):
        write_own(link, "new")
    assert link.is_symlink()
    assert theirs.read_text() == "old"
    assert not (tmp_path / "nothing").exists()
    link.unlink()
    write_own(link, "new")
    write_own(link, "newer")
    assert link.read_text() == "newer"
    assert {*tmp_path.iterdir()} == {theirs, link}


def test_a_device_is_written_to_and_not_replaced():
    write_atomic(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()
    with pytest.raises(UsageError, match="no space left on the disk for /dev/full"):
        write_atomic(Path("/dev/full"), "text")


def test_a_pipe_given_by_a_link_is_written_to(tmp_path):
    reading, writing = os.pipe()
    write_atomic(Path(f"/dev/fd/{writing}"), "text")
    assert os.read(reading, 10) == b"text"
    os.close(reading)
    os.close(writing)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UsageError, match="nothing was written"):
        write_atomic(tmp_path / "no" / "a.json", "text")


KILLED = """
import os, signal, sys
from pathlib import Path
from condconv.files.atomic import write_atomic
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), "new")
"""


def test_a_process_killed_while_it_writes_leaves_the_previous_file_whole(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_only_leftovers_of_these_files_are_removed(tmp_path):
    token = "0123456789abcdef"
    kept = {
        f".condconv-report.html-{token}.tmp",  # another command may be writing it this moment
        f".condconv-last.safetensors-{token[1:]}.tmp",
        f".condconv-last.safetensors-{token}.tmp.bak",
        ".last.safetensors.4711.tmp",
        ".rsync.tmp",
    }
    for name in kept:
        (tmp_path / name).write_text("theirs")
    folder, link = (tmp_path / f".condconv-last.safetensors-{digit * 16}.tmp" for digit in "12")
    folder.mkdir()
    link.symlink_to(tmp_path / ".rsync.tmp")
    (tmp_path / f".condconv-last.safetensors-{token}.tmp").write_text("ours")
    remove_leftovers(tmp_path / "last.safetensors", tmp_path / "config.json")
    assert {each.name for each in tmp_path.iterdir()} == kept | {folder.name, link.name}


@pytest.mark.parametrize("old", ["nothing", "file", "directory"])
def test_a_directory_that_counts_as_a_file_replaces_what_has_its_name(tmp_path, old):
    """CoreML's are directories."""
    path = tmp_path / "n.mlpackage"
    if old == "file":
        path.write_text("old")
    elif old == "directory":
        path.mkdir()
        (path / "stale").write_text("old")
    with written_beside(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [*tmp_path.rglob("*")] == [path, path / "new"]


def test_what_is_written_next_to_a_file_moves_with_it_and_after_an_error_nothing_does(tmp_path):
    path = tmp_path / "n.onnx"
    path.write_text("old")
    path.chmod(0o640)

    def fail():
        with written_beside(path) as temporary:
            temporary.write_text("half")
            raise KeyError("an exporter's")

    with pytest.raises(KeyError):
        fail()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("n.onnx", "old")]
    with written_beside(path) as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".data").write_text("weights")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"n.onnx": "new", "n.data": "weights"}
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_place_where_no_folder_can_be_made_is_refused(tmp_path):
    with pytest.raises(UsageError, match="`path` must be where files can be written, got .*no/n.onnx"):  # noqa: SIM117
        with written_beside(tmp_path / "no" / "n.onnx", "path"):
            pass


def test_a_full_disk_under_another_packages_hands_is_said(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_text("old")
    with (
        pytest.raises(UsageError, match=r"^no space left on the disk for .*; the previous a.onnx is intact: free some"),
        written_beside(path, "path"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), written_beside(path, "path"):
        raise FileNotFoundError(errno.ENOENT, "of something else")
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_in_the_way_of_a_file_next_to_another_is_named(tmp_path, kind):
    path, other = tmp_path / "n.xml", tmp_path / "n.bin"
    path.write_text("old")
    other.mkdir() if kind == "directory" else os.mkfifo(other)
    reason = "Is a directory" if kind == "directory" else "a pipe or a device is there"

    def write():
        with written_beside(path) as temporary:
            temporary.write_text("new")
            temporary.with_suffix(".bin").write_text("weights")

    with pytest.raises(UsageError, match=rf"got {other} \({reason}\); the previous n.bin is"):
        write()
    assert path.read_text() == "old"
    assert other.is_dir() or other.is_fifo()
