"""The first run: a static network, CondConv and its control on digits seen under four conditions, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.counting import count
from condconv.files.atomic import write_own
from condconv.files.paths import check_own, check_own_files
from condconv.lab.bench.timing import time_by_turns
from condconv.lab.data.digits import CONDITIONS
from condconv.lab.data.image_data import ImageData, open_data
from condconv.lab.experiments.comparison import Comparison, NetworkNumbers, as_markdown
from condconv.lab.experiments.demo_config import CONTROL, ROUTED, STATIC, DemoConfig
from condconv.lab.experiments.demo_routing import draw_routing
from condconv.lab.experiments.plots import plot_learning_curves
from condconv.lab.experiments.runs import describe_machine
from condconv.lab.saved.metrics import TrainResult
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.train.loop import train

_FILES = ("table.md", "results.json", "curves.png", "routing.png")  # which come last, after minutes of training
ON = f"digits under four conditions ({', '.join(CONDITIONS)})"
"""What the demo calls its data."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        comparison: Numbers of the three networks.
        interval: 95 % interval of what routing itself brought, in points; None with one seed.
        table: The comparison, as a Markdown table.
        verdict: The conclusion, in one sentence.
        files: What was written: the table, the numbers, the curves, the routing picture.
    """

    comparison: Comparison
    interval: tuple[float, float] | None
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
    data = open_data(config.run(STATIC, config.first_seed))
    networks = {name: load_trained(results[0].last)[1] for name, results in runs.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.stack([data.val[index][0] for index in range(config.batch_size)])
    say("measuring inference by turns")
    rates = _inference_rates({name: each.to(device) for name, each in networks.items()}, images.to(device))
    numbers = {
        name: _numbers(name, runs[name], network.cpu(), images[:1], rates[name]) for name, network in networks.items()
    }
    comparison = Comparison(numbers[STATIC], numbers[CONTROL], numbers[ROUTED])
    interval = comparison.interval(validation_images=len(data.val))
    table = as_markdown(comparison.table())
    verdict = comparison.verdict(validation_images=len(data.val), on=ON)
    files = (
        *_write_numbers(config, comparison, interval, table, verdict),
        *_draw_pictures(config, runs, networks[ROUTED], data),
    )
    return DemoResult(comparison, interval, table, verdict, files)


def _train_all(config: DemoConfig, *, progress: bool, say: Callable[[str], None]) -> dict[str, list[TrainResult]]:
    runs: dict[str, list[TrainResult]] = {name: [] for name in config.networks}
    seeds = config.all_seeds
    check_own(*(Path(config.run(name, seed).out) for seed in seeds for name in runs))
    check_own_files(*(Path(config.out) / name for name in _FILES))
    for seed in seeds:
        for name, results in runs.items():
            title = f"{name}, seed {seed} ({seeds.index(seed) + 1} of {config.seeds})"
            results.append(train(config.run(name, seed), progress=progress, title=title))
            say(f"{title}: {100 * results[-1].metrics[-1].val_top1:.2f} % of the validation images right")
    return runs


def _inference_rates(networks: dict[str, nn.Module], images: Tensor) -> dict[str, tuple[float, ...]]:
    """Return images per second of each network, one value per repetition."""
    calls = {name: partial(network, images) for name, network in networks.items()}
    with torch.inference_mode():
        seconds = time_by_turns(calls, repetitions=15, seconds=0.1, cuda=images.is_cuda)
    return {name: tuple(len(images) / each for each in times) for name, times in seconds.items()}


def _numbers(
    name: str, results: list[TrainResult], network: nn.Module, example: Tensor, rates: tuple[float, ...]
) -> NetworkNumbers:
    total = count(network, example).total
    return NetworkNumbers(
        name=name,
        params=total.params,
        madds=total.madds,
        # The last epoch, not the best one: choosing the epoch by the validation images would flatter all networks.
        accuracy=tuple(each.metrics[-1].val_top1 for each in results),
        train_images_per_second=tuple(each.train_images_per_second for each in results),
        inference_images_per_second=rates,
    )


def _write_numbers(
    config: DemoConfig, comparison: Comparison, interval: tuple[float, float] | None, table: str, verdict: str
) -> tuple[Path, Path]:
    """Write the table as Markdown and all numbers as JSON, with the machine; return the two paths."""
    out = Path(config.out)
    values: dict[str, Any] = {
        "config": asdict(config),
        "networks": asdict(comparison),
        "gains": comparison.gains,
        "interval": interval,
        "verdict": verdict,
        "machine": describe_machine(),
    }
    note = (
        f"Accuracy on {ON}: mean after epoch {config.epochs} and 95 % interval over {config.seeds} seed(s). "
        '"routing itself" compares CondConv with the same experts with one mixture for all images, seed by seed. '
        f"Speeds are medians on this machine and its load: training, and inference with {config.batch_size} images. "
        "Multiply-adds are for one image (convolutions, routing, mixing of kernels)."
    )
    text, numbers = (out / name for name in _FILES[:2])
    write_own(text, f"{table}\n\n{verdict}\n\n{note}\n")
    write_own(numbers, json.dumps(values, indent=2) + "\n")
    return text, numbers


def _draw_pictures(
    config: DemoConfig, runs: dict[str, list[TrainResult]], network: nn.Module, data: ImageData
) -> tuple[Path, Path]:
    """Draw the learning curves, and the routing of the first CondConv network; return the two paths."""
    curves, routing = (Path(config.out) / name for name in _FILES[2:])
    accuracy = {name: [[each.val_top1 for each in run.metrics] for run in results] for name, results in runs.items()}
    loss = {name: [[each.train_loss for each in run.metrics] for run in results] for name, results in runs.items()}
    plot_learning_curves(curves, accuracy, loss, title="Digits under four conditions")
    draw_routing(routing, network, data)
    return curves, routing
