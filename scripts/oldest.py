"""Print the oldest versions that pyproject.toml allows, as constraints for pip: the bounds have one source.

`python scripts/oldest.py > oldest.txt`, then `pip install --constraint oldest.txt '.[train]'`. `make test-oldest` does
both. Needs Python alone, for it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_LOWER_BOUND = re.compile(r'"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)')


def oldest(text: str) -> dict[str, str]:
    """Return the oldest version of each package that has a lower bound.

    Args:
        text: Of pyproject.toml.

    Raises:
        ValueError: A package has two lower bounds: one of them could not be tested.
    """
    bounds: dict[str, str] = {}
    for name, version in _LOWER_BOUND.findall(text):
        if bounds.setdefault(name, version) != version:
            raise ValueError(
                f"{name} must have one lower bound, got {bounds[name]} and {version}: write the same twice"
            )
    return bounds


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in oldest(PROJECT.read_text("utf-8")).items())
