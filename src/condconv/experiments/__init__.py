"""Experiments: functions that train several networks under the same conditions and compare them."""

from condconv.experiments.demo import DemoResult, run_demo
from condconv.experiments.demo_config import DemoConfig

__all__ = ["DemoConfig", "DemoResult", "run_demo"]
