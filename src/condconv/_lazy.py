"""Public names of a package, each imported at its first use: `condconv --help` does without torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from condconv.errors import require_extra

_NEEDED = {"train": ("timm", "torchvision", "accelerate", "safetensors", "tqdm")}
"""What is imported from the extras before any module that needs them."""


def public_names(
    package: str, names: Sequence[str], modules: Sequence[str], *, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package that imports its public names at their first use.

    Args:
        package: Its dotted name.
        names: Its public names.
        modules: Modules of the package, which are attributes of it too. For a name they are imported in this order,
            until one has it.
        extra: What has to be installed; otherwise the first use raises a `MissingExtraError`.
    """

    def find(name: str) -> Any:
        if name not in (*names, *modules):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        for needed in _NEEDED[extra] if extra is not None else ():
            require_extra(needed, extra or "")
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        candidates = (importlib.import_module(f"{package}.{module}") for module in modules)
        found = next(getattr(module, name) for module in candidates if hasattr(module, name))
        setattr(sys.modules[package], name, found)
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *names, *modules})
