"""Run the tests of the compiled kernels with GCC's or Clang's address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from condconv.ops.native.build import compile_library

ROOT = Path(__file__).resolve().parent.parent
# With less optimisation, or the compiler takes minutes over what the sanitizers add.
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1")
# The library under test stands where the ordinary one would.
RUN = """
import sys
from pathlib import Path
from condconv.ops.native import library
library.LOADED, library.WHY_NOT = library.open_library(Path(sys.argv[1]))
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/ops/test_native.py"]))
"""


def main() -> int:
    """Build and run.

    Returns:
        0 when the tests pass and the sanitizers find nothing.
    """
    # Python itself links no C++, and the sanitizer looks for its exceptions, which triton throws, as a process starts.
    names = ("libasan.so", "libstdc++.so.6")
    preload = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library(Path(folder) / "sanitized.so", FLAGS)
        # Python itself keeps memory to its end, and torch was built without sanitizers.
        options = {"LD_PRELOAD": ":".join(preload), "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"}
        command = [sys.executable, "-c", RUN, str(library)]
        return subprocess.run(command, cwd=ROOT, env=os.environ | options, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
