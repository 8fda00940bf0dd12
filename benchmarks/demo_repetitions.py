"""Repeats CondConv and its control of `condconv demo` with other seeds, and trains other static networks.

    python benchmarks/demo_repetitions.py --runs runs/demo-repetitions

Repetition number r has the demo's four seeds from 4 r on. The demo's settings were chosen with seeds from 100 on. The
other static networks, wider or at a higher rate, have the seeds of the first. Finished runs are kept, so the command
resumes; the record is written after each repetition.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from condconv.counting import count
from condconv.files.atomic import write_atomic
from condconv.lab.config import TrainConfig
from condconv.lab.experiments import DemoConfig
from condconv.lab.experiments.comparison import confidence_half_width
from condconv.lab.experiments.demo_config import CONTROL, ROUTED, STATIC
from condconv.lab.experiments.runs import describe_machine
from condconv.lab.saved import load_trained
from condconv.lab.train import train

RESULTS = Path(__file__).resolve().parent / "results" / "demo-repetitions.json"
RIVALS: Mapping[str, Mapping[str, Any]] = {
    "wider, as many multiply-adds": {"model": "small_dense_042"},
    "wider, as many parameters": {"model": "small_dense_084"},
    "twice the rate": {"lr": 1.6},
}
"""Static networks that differ from the demo's in one setting."""


def repeat(config: DemoConfig) -> dict[str, Any]:
    """Train the networks of one demo, and return their accuracies and what routing itself brought, in points."""
    accuracy = {name: _accuracy([config.run(name, seed) for seed in config.all_seeds]) for name in (CONTROL, ROUTED)}
    gains = [100 * (routed - control) for control, routed in zip(accuracy[CONTROL], accuracy[ROUTED], strict=True)]
    half = confidence_half_width(gains) or float("inf")
    interval = [mean(gains) - half, mean(gains) + half]
    return {"first_seed": config.first_seed, "accuracy": accuracy, "gains": gains, "interval": interval}


def train_rivals(config: DemoConfig) -> dict[str, Any]:
    """Train the other static networks with the demo's seeds, and return their cost and accuracies."""
    found = {}
    for number, (what, changes) in enumerate(RIVALS.items()):
        runs = [config.run(STATIC, seed) for seed in config.all_seeds]
        runs = [replace(run, out=f"{config.out}/rival{number}-seed{run.seed}", **changes) for run in runs]
        accuracy = _accuracy(runs)
        total = count(load_trained(Path(runs[0].out) / "last.safetensors")[1], torch.zeros(1, 1, 16, 16)).total
        found[what] = {**changes, "params": total.params, "madds": total.madds, "accuracy": accuracy}
    return found


def _accuracy(runs: list[TrainConfig]) -> list[float]:
    return [train(run, progress=False).metrics[-1].val_top1 for run in runs]


def main() -> None:
    """Repeat the demo, print a line each time and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = DemoConfig(out=str(arguments.runs))
    record: dict[str, Any] = {
        "command": "python benchmarks/demo_repetitions.py --runs runs/demo-repetitions",
        "config": {name: value for name, value in asdict(config).items() if name not in ("out", "first_seed")},
        "machine": describe_machine(),
        "repetitions": [],
    }
    for number in range(arguments.repetitions):
        repetition = repeat(replace(config, first_seed=number * config.seeds))
        record["repetitions"].append(repetition)
        record["above_zero"] = sum(each["interval"][0] > 0 for each in record["repetitions"])
        low, high = repetition["interval"]
        print(f"seeds from {repetition['first_seed']}: {mean(repetition['gains']):+.2f}, {low:+.2f} to {high:+.2f}")
        write(record, arguments.output)
    record["rivals"] = train_rivals(config)
    write(record, arguments.output)
    print(f"{record['above_zero']} of {arguments.repetitions} intervals lie above zero")


def write(record: dict[str, Any], path: Path) -> None:
    """Write the record, whole or not at all."""
    write_atomic(path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
