import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from condconv.atomic import remove_leftovers, write_atomic
from condconv.errors import UsageError


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
        (errno.EIO, "must be in a directory that can be written to"),
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


@pytest.mark.parametrize("name", ["a" * 300, "file/a"])
def test_a_name_that_cannot_be_is_said_once(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="can be written to"):
        write_atomic(tmp_path / name, b"new")


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


def test_a_device_is_written_to_and_not_replaced():
    write_atomic(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()
    with pytest.raises(UsageError, match="no space left on the disk for /dev/full"):
        write_atomic(Path("/dev/full"), "text")


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UsageError, match="nothing was written"):
        write_atomic(tmp_path / "no" / "a.json", "text")


KILLED = """
import os, signal, sys
from pathlib import Path
from condconv.atomic import write_atomic
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
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
