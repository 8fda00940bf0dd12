"""Public names of a package of the lab, each imported at its first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from condconv.errors import require_extra


def find(package: str, homes: Mapping[str, str], name: str) -> Any:
    """Return a public name of a package from the module that defines it.

    Args:
        package: Dotted name of the package.
        homes: The module of each name, relative to the package.
        name: The requested name.

    Raises:
        AttributeError: The package has no such name.
        MissingExtraError: The extra `train` is not installed.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    for module in ("timm", "torchvision", "accelerate", "safetensors", "tqdm"):
        require_extra(module, "train")
    return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
