"""Experiments: functions that train several networks under the same conditions and compare them."""

from condconv.lab.experiments.demo import DemoResult, run_demo
from condconv.lab.experiments.demo_config import DemoConfig

__all__ = ["DemoConfig", "DemoResult", "run_demo"]
