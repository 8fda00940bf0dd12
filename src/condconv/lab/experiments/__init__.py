"""Experiments: functions that train several networks under the same conditions and compare them.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condconv.lazy import public_names

if TYPE_CHECKING:
    from condconv.lab.experiments.demo import DemoResult, run_demo
    from condconv.lab.experiments.demo_config import DemoConfig

__all__ = ["DemoConfig", "DemoResult", "run_demo"]

__getattr__, __dir__ = public_names(__name__, __all__, ("demo_config", "demo"), extra="train")
