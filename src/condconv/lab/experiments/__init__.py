"""Experiments: functions that train several networks under the same conditions and compare them.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condconv._lazy import public_names

if TYPE_CHECKING:
    from condconv.lab.experiments.budget_picture import Curve, check_picture, plot_members
    from condconv.lab.experiments.catalog import create_experiment
    from condconv.lab.experiments.demo import DemoResult, run_demo
    from condconv.lab.experiments.demo_config import DemoConfig
    from condconv.lab.experiments.design import Experiment
    from condconv.lab.experiments.ladder import Size, size_of
    from condconv.lab.experiments.recipes import RECIPES
    from condconv.lab.experiments.runner import list_runs, run_all
    from condconv.lab.experiments.runs import execute
    from condconv.lab.experiments.tables import write_tables

__all__ = [
    "RECIPES",
    "Curve",
    "DemoConfig",
    "DemoResult",
    "Experiment",
    "Size",
    "check_picture",
    "create_experiment",
    "execute",
    "list_runs",
    "plot_members",
    "run_all",
    "run_demo",
    "size_of",
    "write_tables",
]

_MODULES = (
    "demo_config",
    "design",
    "recipes",
    "ladder",
    "catalog",
    "runs",
    "runner",
    "tables",
    "demo",
    "budget_picture",
)
__getattr__, __dir__ = public_names(__name__, __all__, _MODULES, extra="train")
