"""Install a wheel into a fresh environment that has torch and numpy only, and use it there.

`python scripts/clean_install.py condconv.whl`. Torch is large, so it is not downloaded again: the new
environment gets links to what torch and numpy require, found from their metadata, and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
CORE = ("torch", "numpy")


def required_distributions(names: tuple[str, ...]) -> list[Distribution]:
    """Find the named distributions and all that they require here, directly or not.

    Args:
        names: Distributions to start from.

    Returns:
        Each distribution once.

    Raises:
        PackageNotFoundError: A starting distribution is not installed.
    """
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise
            continue
        for line in found[name].requires or ():
            requirement = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(one) for one in wanted):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return list(found.values())


def link_into(site_packages: Path, distributions: list[Distribution]) -> None:
    """Link the top-level files and folders of distributions.

    Args:
        site_packages: Where the links go.
        distributions: What is linked.
    """
    for dist in distributions:
        for name in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
            link = site_packages / name
            if not link.exists():
                link.symlink_to(Path(str(dist.locate_file(name))))


def main(wheel: str) -> int:
    """Install the wheel and run the core's smoke test on it.

    Args:
        wheel: Path of the wheel.

    Returns:
        Exit status of the smoke test.

    Raises:
        subprocess.CalledProcessError: The installation failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        python = next(Path(folder).glob("[bS]*/python*"))
        (site_packages,) = Path(folder).glob("[lL]ib/**/site-packages")
        link_into(site_packages, required_distributions(CORE))
        install = ["-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet"]
        subprocess.run([sys.executable, *install, "--no-deps", "--no-index", wheel], check=True)
        # -I: neither the current folder nor the user's own packages may lend a module.
        smoke = [str(python), "-I", "-W", "error", str(ROOT / "scripts" / "core_smoke.py"), folder]
        return subprocess.run(smoke, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
