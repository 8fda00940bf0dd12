import shutil
import subprocess
import sys

import pytest
from filelock import FileLock

from condconv.errors import UsageError
from condconv.lab.processes import LOCK, only_here


def test_a_second_run_in_a_directory_is_refused(tmp_path):
    out = tmp_path / "run"
    with only_here(out):
        refused = pytest.raises(UsageError, match="`out` must be a directory that no other run is using, got .*run: ")
        with refused, only_here(out):
            pytest.fail("two runs are at work")
        (out / "last").touch()
    with only_here(out):
        pass
    assert (out / "last").exists()


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom condconv.lab.processes import only_here\n"
        "with only_here(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / LOCK).exists()
    with only_here(tmp_path):
        pass


def test_a_run_that_leaves_nothing_leaves_no_directory(tmp_path):
    with pytest.raises(UsageError, match="no data"), only_here(tmp_path / "run"):
        raise UsageError("no data")
    assert not (tmp_path / "run").exists()


def test_other_processes_of_a_run_do_not_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with FileLock(tmp_path / LOCK), only_here(tmp_path):
        pass


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(UsageError, match="`out` must be a directory that can be made, got .*file/run")
    with refused, only_here(tmp_path / "file" / "run"):
        pass


def test_a_directory_that_is_removed_meanwhile_hides_no_error(tmp_path):
    def fail():
        with only_here(tmp_path / "a"):
            shutil.rmtree(tmp_path / "a")
            raise RuntimeError("the run's own")

    with pytest.raises(RuntimeError, match="the run's own"):
        fail()
