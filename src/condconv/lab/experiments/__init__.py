"""Experiments: functions that train several networks under the same conditions and compare them.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condconv.lab.face import find

if TYPE_CHECKING:
    from condconv.lab.experiments.demo import DemoResult, run_demo
    from condconv.lab.experiments.demo_config import DemoConfig

__all__ = ["DemoConfig", "DemoResult", "run_demo"]

_HOMES = {"DemoConfig": "demo_config", "DemoResult": "demo", "run_demo": "demo"}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)
