"""Runs of an experiment end with the process that started them, and import nothing of the working directory."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from condconv.cli import child

SLEEPING = """
import os, pathlib, sys, time
sys.modules["condconv.__main__"] = main = type(sys)("main")
def run():
    pathlib.Path("started").write_text(str(os.getpid()))
    time.sleep(100)
main.main = run
"""


def wait_for(condition, seconds=30):
    latest = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < latest, "it did not come true"
        time.sleep(0.02)
    return found


def is_running(number: int) -> bool:
    """Return whether a process is there and is more than an entry that nobody has collected."""
    with suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_modules_in_the_working_directory_are_not_imported(tmp_path):
    for called in ("condconv", "torch", "numpy", "json", "argparse"):
        (tmp_path / f"{called}.py").write_text("raise SystemExit('a file of the working directory was imported')")
    command = [*child.command(), "models", "mobilenet_v1_025"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        said = process.stdout.read()  # its stdin stays open for as long
    assert (process.returncode, said.splitlines()[1].split()[0]) == (0, b"mobilenet_v1_025")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_parent_ends_its_runs(tmp_path):
    """The parent holds the other end of stdin; the kernel closes it, even on SIGKILL."""
    (tmp_path / "sitecustomize.py").write_text(SLEEPING)
    started = tmp_path / "started"
    parent = (
        "import subprocess; from condconv.cli import child; "
        "subprocess.Popen(child.command(), stdin=subprocess.PIPE).wait()"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    try:
        number = int(wait_for(lambda: started.exists() and started.read_text()))
        assert is_running(number)
        process.kill()
        process.wait()
        wait_for(lambda: not is_running(number))
    finally:
        process.kill()
        process.wait()
