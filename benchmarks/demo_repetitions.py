"""Repeats `condconv demo` with other seeds, next to wider static networks.

    python benchmarks/demo_repetitions.py --runs runs/demo-repetitions

Repetition number r is the demo with its five seeds from 5 r on. The demo's settings were chosen with seeds from 100 on.
Finished runs are kept, so the command resumes; the record is written after each repetition.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from condconv.counting import count
from condconv.lab.experiments import DemoConfig, run_demo
from condconv.lab.experiments.comparison import confidence_half_width
from condconv.lab.experiments.demo_config import STATIC
from condconv.lab.experiments.runs import describe_machine
from condconv.lab.saved import load_trained
from condconv.lab.train import train

RESULTS = Path(__file__).resolve().parent / "results" / "demo-repetitions.json"
WIDER = {"as many multiply-adds": "small_dense_042", "as many parameters": "small_dense_084"}
"""Static networks of about the cost of the demo's CondConv, by what they have as many of."""


def repeat(config: DemoConfig) -> dict[str, Any]:
    """Run the demo once, and return what it found."""
    result = run_demo(config, progress=False, say=lambda line: None)
    networks = asdict(result.comparison)
    return {
        "seeds": list(range(config.first_seed, config.first_seed + config.seeds)),
        "accuracy": {name: networks[name]["accuracy"] for name in networks},
        "gains": result.comparison.gains,
        "interval": result.interval,
        "verdict": result.verdict,
    }


def train_wider(config: DemoConfig, seeds: Sequence[int]) -> dict[str, Any]:
    """Train the wider static networks as the demo trains its own, and return their cost and accuracies."""
    found = {}
    for what, model in WIDER.items():
        runs = [config.run(STATIC, seed) for seed in seeds]
        results = [train(replace(run, model=model, out=f"{config.out}/{model}-{run.seed}"), progress=False) for run in runs]
        total = count(load_trained(results[0].last)[1], torch.zeros(1, 1, 16, 16)).total
        accuracy = [each.metrics[-1].val_top1 for each in results]
        found[what] = {"model": model, "params": total.params, "madds": total.madds, "accuracy": accuracy}
    return found


def main() -> None:
    """Repeat the demo, print a line each time and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--repetitions", type=int, default=10)
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
        first = number * config.seeds
        record["repetitions"].append(repeat(replace(config, first_seed=first)))
        low, high = record["repetitions"][-1]["interval"]
        print(f"seeds from {first}: {record['repetitions'][-1]['verdict']}", flush=True)
        record["excluding_zero"] = sum(low > 0 for low, _ in (each["interval"] for each in record["repetitions"]))
        write(record)
    record["wider"] = train_wider(config, range(config.seeds))
    write(record)
    gains = [gain for each in record["repetitions"] for gain in each["gains"]]
    print(f"{record['excluding_zero']} of {arguments.repetitions} intervals lie above zero")
    print(f"all seeds: {mean(gains):+.2f} points ± {confidence_half_width(gains):.2f}")
    print({what: f"{mean(each['accuracy']):.2%}" for what, each in record["wider"].items()})


def write(record: dict[str, Any]) -> None:
    """Write the record."""
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
