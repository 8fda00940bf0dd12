"""The first run: a static network and its CondConv twin on digits, from the same seeds, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from condconv.analysis import RoutingRecord
from condconv.counting import count
from condconv.files.paths import check_own
from condconv.lab.bench.timing import time_by_turns
from condconv.lab.data.image_data import ImageData, open_data
from condconv.lab.data.loading import create_loader
from condconv.lab.experiments import comparison
from condconv.lab.experiments.comparison import NetworkNumbers
from condconv.lab.experiments.demo_config import DemoConfig
from condconv.lab.experiments.demo_files import draw_pictures, write_numbers
from condconv.lab.saved.inspection import record
from condconv.lab.saved.metrics import TrainResult
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.train.loop import train


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        static: Numbers of the ordinary network.
        conditional: Numbers of its CondConv twin.
        table: The comparison, as a Markdown table.
        verdict: What may be concluded, in one line.
        files: What was written: the table, the numbers, the curves, the routing picture.
    """

    static: NetworkNumbers
    conditional: NetworkNumbers
    table: str
    verdict: str
    files: tuple[Path, ...]


def run_demo(config: DemoConfig, *, progress: bool = True, say: Callable[[str], None] = print) -> DemoResult:
    """Train what is not trained yet, measure, and write the comparison.

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
    networks = {name: _load(results[0]) for name, results in runs.items()}
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
    routing = _record_routing(networks[config.conditional], data)
    files = (*write_numbers(config, numbers, table, verdict), *draw_pictures(config, runs, routing, data))
    return DemoResult(static, conditional, table, verdict, files)


def _train_all(config: DemoConfig, *, progress: bool, say: Callable[[str], None]) -> dict[str, list[TrainResult]]:
    runs: dict[str, list[TrainResult]] = {config.static: [], config.conditional: []}
    check_own(*(Path(config.run(name, seed).out) for seed in range(config.seeds) for name in runs))
    for seed in range(config.seeds):
        for name, results in runs.items():
            title = f"{name}, seed {seed + 1} of {config.seeds}"
            results.append(train(config.run(name, seed), progress=progress, title=title))
            say(f"{title}: {100 * results[-1].metrics[-1].val_top1:.2f} % of the validation images right")
    return runs


def _load(result: TrainResult) -> nn.Module:
    return load_trained(result.last)[1]


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


def _record_routing(network: nn.Module, data: ImageData) -> RoutingRecord:
    """Return what the routing of the last conditional layer did on the validation images."""
    return record(network, create_loader(data.val, 256), data.class_names).routings[-1]
