"""Run every check of the project in order and stop at the first that fails.

With no arguments it runs them all; `python scripts/check.py lint types` runs the named ones. The Python that
runs it needs the extra `all`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src", "tests", "scripts", "benchmarks", "conftest.py", "hatch_build.py")
# One thread per process: pytest runs one process per core.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# The theme otherwise prints a notice about its successor at every build.
QUIET_DOCS = {"NO_MKDOCS_2_WARNING": "1"}


def run(*command: str, **environment: str) -> None:
    """Run a tool of this environment from the project's root.

    Args:
        *command: Module name and arguments, as after `python -m`.
        **environment: Variables to set besides the present ones.

    Raises:
        subprocess.CalledProcessError: The tool failed.
    """
    subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | environment, check=True)


def check_format() -> None:
    """Check that `ruff format` would change nothing."""
    run("-m", "ruff", "format", "--check", *SOURCES)


def check_lint() -> None:
    """Check the style and docstring rules."""
    run("-m", "ruff", "check", *SOURCES)


def check_words() -> None:
    """Check that documentation, docstrings and messages are plain English."""
    run("scripts/plain_words.py")


def check_types() -> None:
    """Check the annotations."""
    run("-m", "mypy")


def check_imports() -> None:
    """Check who imports whom."""
    # import-linter has no `python -m` form.
    run("-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-logo")


def check_tests() -> None:
    """Run the tests and the doctests, on two processes."""
    run("-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", **SINGLE_THREADED)


def check_docs() -> None:
    """Build the documentation and check that the site loads nothing from other hosts."""
    with tempfile.TemporaryDirectory() as site:
        run("-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", site, **QUIET_DOCS)
        run("scripts/check_site.py", site)


def check_wheel() -> None:
    """Build the wheel and use it in an environment with torch and numpy only."""
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "build", "--no-isolation", "--outdir", folder, ".")
        (wheel,) = Path(folder).glob("*.whl")
        run("scripts/clean_install.py", str(wheel), **SINGLE_THREADED)


CHECKS: dict[str, Callable[[], None]] = {
    "format": check_format,
    "lint": check_lint,
    "words": check_words,
    "types": check_types,
    "imports": check_imports,
    "tests": check_tests,
    "docs": check_docs,
    "wheel": check_wheel,
}


def main() -> int:
    """Run the named checks, or all of them.

    Returns:
        0 when all passed, 1 at the first that did not.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("check", nargs="*", help=f"any of {', '.join(CHECKS)} (default: all of them)")
    names = parser.parse_args().check or list(CHECKS)
    for name in names:
        if name not in CHECKS:
            parser.error(f"`check` must be one of {', '.join(CHECKS)}, got {name}")
    for name in names:
        print(f"== {name}: {(CHECKS[name].__doc__ or '').strip()}", flush=True)
        started = time.monotonic()
        try:
            CHECKS[name]()
        except subprocess.CalledProcessError as failure:
            print(f"\n== FAILED: {name} (exit status {failure.returncode})", file=sys.stderr)
            print(f"== again, alone: {sys.executable} scripts/check.py {name}", file=sys.stderr)
            return 1
        print(f"== {name} passed in {time.monotonic() - started:.0f} s", flush=True)
    print(f"== all passed: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
