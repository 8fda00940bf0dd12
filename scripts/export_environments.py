"""Run the tests of exports where their packages are: an environment for each group, since not all fit together.

`python scripts/export_environments.py [--in FOLDER] [--constraint FILE] [GROUP ...]` makes a virtual environment for
each group (onnx, executorch, litert, coreml), builds and installs this package there, and runs tests/export. pip is
asked as the machine has it set up; a file of constraints can hold torch to a version, as to one for the CPU alone,
which saves several GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    "onnx": ("onnx", "openvino"),
    "executorch": ("executorch",),
    "litert": ("litert",),
    "coreml": ("coreml",),
}


def run_group(group: str, folder: Path, constraints: Sequence[Path] = ()) -> int:
    """Make the environment of a group, unless it is there, and run the tests in it.

    Args:
        group: A key of `GROUPS`; its values are extras.
        folder: Where environments are kept.
        constraints: Files that pip takes with `--constraint`.

    Returns:
        Exit status of pytest.

    Raises:
        subprocess.CalledProcessError: The installation failed.
    """
    home = folder / group
    python = str(home / "bin" / "python")
    if not Path(python).exists():
        venv.create(home, with_pip=True)
    extras = ",".join(GROUPS[group])
    held = [word for each in constraints for word in ("--constraint", str(each.resolve()))]
    install = [python, "-m", "pip", "install", "--quiet", *held]
    subprocess.run([*install, f"{ROOT}[{extras}]", "pytest>=8.4", "pillow>=10"], check=True)
    # `-W default`: these packages warn in ways that we cannot fix.
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "tests/export"]
    print(f"{group}: {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> int:
    """Run the groups that are asked for.

    Returns:
        0 when all passed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--in", dest="folder", type=Path, help="keep the environments here (default: a temporary one)")
    parser.add_argument(
        "--constraint", action="append", type=Path, default=[], metavar="FILE", help="for pip, as its own"
    )
    arguments = parser.parse_args()
    unknown = [group for group in arguments.groups if group not in GROUPS]
    if unknown:
        parser.error(f"GROUP must be one of {', '.join(GROUPS)}, got {unknown[0]}")
    missing = [file for file in arguments.constraint if not file.is_file()]
    if missing:
        parser.error(f"--constraint must be a file that exists, got {missing[0]}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        statuses = [run_group(group, folder, arguments.constraint) for group in arguments.groups or GROUPS]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
