"""Where an experiment ran."""

from __future__ import annotations

import platform
from typing import Any

import torch


def describe_machine() -> dict[str, Any]:
    """Return the machine and the versions, in types that JSON has."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
