"""The first run: a static network and its CondConv twin on digits, from the same seeds, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condconv.analysis import RoutingRecord
from condconv.counting import count
from condconv.files.atomic import write_own
from condconv.files.paths import check_own
from condconv.lab.bench.timing import time_by_turns
from condconv.lab.data.image_data import ImageData, open_data
from condconv.lab.data.loading import create_loader
from condconv.lab.experiments import comparison
from condconv.lab.experiments.comparison import NetworkNumbers
from condconv.lab.experiments.demo_config import DemoConfig
from condconv.lab.experiments.plots import plot_learning_curves, plot_routing
from condconv.lab.experiments.runs import describe_machine
from condconv.lab.saved.inspection import record
from condconv.lab.saved.metrics import TrainResult
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.train.loop import train

_FILES = ("table.md", "results.json", "curves.png", "routing.png")  # which come last, after minutes of training


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        static: Numbers of the ordinary network.
        conditional: Numbers of its CondConv twin.
        table: The comparison, as a Markdown table.
        verdict: The conclusion, in one line.
        files: What was written: the table, the numbers, the curves, the routing picture.
    """

    static: NetworkNumbers
    conditional: NetworkNumbers
    table: str
    verdict: str
    files: tuple[Path, ...]


def run_demo(config: DemoConfig, *, progress: bool = True, say: Callable[[str], None] = print) -> DemoResult:
    """Train the networks that are not trained yet, measure them, and write the comparison.

    Args:
        config: Settings.
        progress: Whether to show bars, which only a terminal gets.
        say: Gets one line after each run.

    Raises:
        UsageError: The directory holds runs of other settings.
        TrainingInterrupted: Ctrl-C; the finished epochs are saved, and the next call resumes from them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _run(config, progress=progress, say=say)
    finally:
        torch.set_num_threads(before)


def _run(config: DemoConfig, *, progress: bool, say: Callable[[str], None]) -> DemoResult:
    runs = _train_all(config, progress=progress, say=say)
    data = open_data(config.run(config.static, 0))
    networks = {name: load_trained(results[0].last)[1] for name, results in runs.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    example = torch.stack([data.val[index][0] for index in range(config.batch_size)])
    say("measuring inference by turns")
    rates = _inference_rates({name: each.to(device) for name, each in networks.items()}, example.to(device))
    numbers = {
        name: _numbers(name, runs[name], network.cpu(), example[:1], rates[name]) for name, network in networks.items()
    }
    static, conditional = numbers[config.static], numbers[config.conditional]
    table = comparison.as_markdown(comparison.table(static, conditional))
    verdict = comparison.verdict(static, conditional, validation_images=len(data.val))
    recorded = record(networks[config.conditional], create_loader(data.val, 256), data.class_names)
    files = (
        *_write_numbers(config, numbers, table, verdict),
        *_draw_pictures(config, runs, recorded.routings[-1], data),
    )
    return DemoResult(static, conditional, table, verdict, files)


def _train_all(config: DemoConfig, *, progress: bool, say: Callable[[str], None]) -> dict[str, list[TrainResult]]:
    runs: dict[str, list[TrainResult]] = {config.static: [], config.conditional: []}
    check_own(*(Path(config.run(name, seed).out) for seed in range(config.seeds) for name in runs))
    check_own(*(Path(config.out) / name for name in _FILES))
    for seed in range(config.seeds):
        for name, results in runs.items():
            title = f"{name}, seed {seed + 1} of {config.seeds}"
            results.append(train(config.run(name, seed), progress=progress, title=title))
            say(f"{title}: {100 * results[-1].metrics[-1].val_top1:.2f} % of the validation images right")
    return runs


def _inference_rates(networks: dict[str, nn.Module], images: torch.Tensor) -> dict[str, tuple[float, ...]]:
    """Return images per second of each network, one value per repetition."""
    calls = {name: partial(network, images) for name, network in networks.items()}
    with torch.inference_mode():
        seconds = time_by_turns(calls, repetitions=15, seconds=0.1, cuda=images.is_cuda)
    return {name: tuple(len(images) / each for each in times) for name, times in seconds.items()}


def _numbers(
    name: str, results: list[TrainResult], network: nn.Module, example: torch.Tensor, rates: tuple[float, ...]
) -> NetworkNumbers:
    total = count(network, example).total
    return NetworkNumbers(
        name=name,
        params=total.params,
        madds=total.madds,
        # The last epoch, not the best one: choosing the epoch by the validation images would flatter both
        # networks.
        accuracy=tuple(each.metrics[-1].val_top1 for each in results),
        train_images_per_second=tuple(each.train_images_per_second for each in results),
        inference_images_per_second=rates,
    )


def _write_numbers(
    config: DemoConfig, numbers: dict[str, NetworkNumbers], table: str, verdict: str
) -> tuple[Path, Path]:
    """Write the table as Markdown and all numbers as JSON, with the machine; return the two paths."""
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
    text, values = (out / name for name in _FILES[:2])
    write_own(text, f"{table}\n\n{verdict}\n\n{note}\n")
    write_own(values, json.dumps(record, indent=2) + "\n")
    return text, values


def _draw_pictures(
    config: DemoConfig,
    runs: dict[str, list[TrainResult]],
    routing: RoutingRecord,
    data: ImageData,
) -> tuple[Path, Path]:
    """Draw the learning curves and the routing of the conditional network; return the two paths."""
    curves, picture = (Path(config.out) / name for name in _FILES[2:])
    accuracy = {name: [[each.val_top1 for each in run.metrics] for run in results] for name, results in runs.items()}
    loss = {name: [[each.train_loss for each in run.metrics] for run in results] for name, results in runs.items()}
    plot_learning_curves(curves, accuracy, loss, title="Static network and its CondConv twin on digits")
    title = f"Routing in the last conditional layer, {routing.layers[-1]}"
    plot_routing(picture, routing.class_mean, data.class_names, title=title)
    return curves, picture
