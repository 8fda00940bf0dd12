"""What the demo leaves behind: the table, the numbers, the pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from condconv.analysis import RoutingRecord
from condconv.files.atomic import write_own
from condconv.lab.data.image_data import ImageData
from condconv.lab.experiments.comparison import NetworkNumbers
from condconv.lab.experiments.demo_config import DemoConfig
from condconv.lab.experiments.plots import plot_learning_curves, plot_routing
from condconv.lab.experiments.runs import describe_machine
from condconv.lab.saved.metrics import TrainResult


def write_numbers(
    config: DemoConfig, numbers: dict[str, NetworkNumbers], table: str, verdict: str
) -> tuple[Path, Path]:
    """Write the table as Markdown and all numbers as JSON, with the machine; returns the two paths."""
    out = Path(config.out)
    record: dict[str, Any] = {
        "config": asdict(config),
        "networks": {name: asdict(each) for name, each in numbers.items()},
        "verdict": verdict,
        "machine": describe_machine(),
    }
    note = (
        f"Digits, {config.epochs} epochs, {config.seeds} seed(s). Accuracy: mean ± standard deviation over seeds, "
        "last epoch. Speeds: median ± standard deviation, training over seeds, inference over repetitions by "
        f"turns with {config.batch_size} images. MADDs: multiply-adds for one image (convolutions, routing, mixing "
        "of kernels)."
    )
    write_own(out / "table.md", f"{table}\n\n{verdict}\n\n{note}\n")
    write_own(out / "results.json", json.dumps(record, indent=2) + "\n")
    return out / "table.md", out / "results.json"


def draw_pictures(
    config: DemoConfig,
    runs: dict[str, list[TrainResult]],
    routing: RoutingRecord,
    data: ImageData,
) -> tuple[Path, Path]:
    """Draw the learning curves and the routing of the conditional network; returns the two paths."""
    curves, picture = Path(config.out) / "curves.png", Path(config.out) / "routing.png"
    accuracy = {name: [[each.val_top1 for each in run.metrics] for run in results] for name, results in runs.items()}
    loss = {name: [[each.train_loss for each in run.metrics] for run in results] for name, results in runs.items()}
    plot_learning_curves(curves, accuracy, loss, title="Static network and its CondConv twin on digits")
    title = f"Routing in the last conditional layer, {routing.layers[-1]}"
    plot_routing(picture, routing.class_mean, data.class_names, title=title)
    return curves, picture
