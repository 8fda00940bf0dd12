"""What routing brings a small network whose maps have pixels, by the rate at which its routers learn.

    python benchmarks/small_network.py --data cifar10 --runs runs/small

Four 3 x 3 convolutions of 8 to 32 channels, each with a batch norm, on images of 16 pixels: maps of 16, 8, 4 and 4
pixels a side. All four have experts, the classifier has none. Trained by the loop of `condconv train`, with SGD where
experts start as copies of one kernel, or AdamW where each starts on its own. Runs that are finished are kept, and those
that are not go on. Table, plot and `records.json` are those of `condconv experiment`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import condconv
from condconv.lab.config import TrainConfig
from condconv.lab.experiments.design import Arm, Experiment
from condconv.lab.experiments.runner import Outcome
from condconv.lab.experiments.runs import RunRecord, describe_machine
from condconv.lab.experiments.tables import write_tables
from condconv.lab.saved import EpochMetrics
from condconv.lab.train import train

SIZE = 16
_SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1}
_ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01}
_APART: dict[str, Any] = {"width": 8, "num_experts": 4, "init": "random"}
# Network and settings of the training, by what the tables call them.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "static": ({"width": 8}, {}),
    "static, 9 channels": ({"width": 9}, {}),
    "4 experts, all images alike": ({"width": 8, "num_experts": 4, "routing": "constant(weights=0.5)"}, {}),
    "4 experts": ({"width": 8, "num_experts": 4}, {}),
    "4 experts, routers at 10 times the rate": ({"width": 8, "num_experts": 4}, {"router_lr_scale": 10}),
    "4 experts, routers at 30 times the rate": ({"width": 8, "num_experts": 4}, {"router_lr_scale": 30}),
    "8 experts, routers at 30 times the rate": ({"width": 8, "num_experts": 8}, {"router_lr_scale": 30}),
    "static, AdamW": ({"width": 8}, _ADAMW),
    "4 experts, AdamW, all images alike": (_APART | {"routing": "constant(weights=0.5)"}, _ADAMW),
    "4 experts, AdamW": (_APART, _ADAMW),
}

EXPERIMENT = Experiment(
    name="small-network",
    title="A small network on maps with pixels",
    source="no table of the paper",
    arms=tuple(
        Arm(label, "small", options, against="static, AdamW" if changes is _ADAMW else None)
        for label, (options, changes) in ARMS.items()
    ),
    note="The classifier is static.",
)
CONDITIONS = (
    "Peak rate 0.1 with SGD, 0.01 with AdamW, batch 128, decay 5e-4 on all but the routers, images of 16 pixels."
)


def build(config: TrainConfig, num_classes: int, in_chans: int) -> nn.Module:
    """Make the network that the settings describe."""
    options: dict[str, Any] = dict(config.model_options)
    width = options.pop("width")
    channels = (in_chans, width, 2 * width, 4 * width, 4 * width)
    layers: list[nn.Module] = []
    for index, stride in enumerate((1, 2, 2, 1)):
        convolution = nn.Conv2d(channels[index], channels[index + 1], 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels[index + 1]), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes))
    if options:
        example = torch.zeros(2, in_chans, SIZE, SIZE)
        condconv.convert_(network, layers=condconv.select.convs(), example_input=example, **options)
    return network


def settings(data: str, runs: Path, label: str, seed: int, epochs: int) -> TrainConfig:
    """Return the settings of one training."""
    options, changes = ARMS[label]
    name = "".join(each if each.isalnum() else "-" for each in label)
    return TrainConfig(
        data=data,
        image_size=SIZE,
        model="small",
        model_options=options,
        epochs=epochs,
        batch_size=128,
        weight_decay=5e-4,
        norm_decay=True,
        router_decay=False,
        warmup_epochs=1,
        min_crop=1.0,
        channels_last=True,
        device="cpu",
        seed=seed,
        out=str(runs / f"{name}-seed{seed}"),
        **_SGD | changes,
    )


def as_record(label: str, config: TrainConfig, metrics: tuple[EpochMetrics, ...], images: int) -> RunRecord:
    """Return what a finished training leaves in tables."""
    total = condconv.count(build(config, 10, 3), torch.zeros(1, 3, SIZE, SIZE)).total
    return RunRecord(
        experiment=EXPERIMENT.name,
        label=label,
        seed=config.seed,
        settings=json.dumps(asdict(config) | {"out": None}),
        params=total.params,
        madds=total.madds,
        score=metrics[-1].val_top1,
        member_scores=(metrics[-1].val_top1,),
        curve=(tuple(epoch.val_top1 for epoch in metrics),),
        loss_curve=(tuple(epoch.train_loss for epoch in metrics),),
        images_trained=images,
        seconds=round(sum(epoch.seconds for epoch in metrics), 1),
        machine=describe_machine(),
    )


def main() -> None:
    """Train what is not trained yet, print a line a run and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="as for condconv train")
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    arguments = parser.parse_args()
    records = []
    for seed in arguments.seeds:
        for label in arguments.arms:
            config = settings(arguments.data, arguments.runs, label, seed, arguments.epochs)
            result = train(config, build=build, progress=False, wait=True)
            metrics = result.metrics
            print(f"{label}, seed {seed}: {metrics[-1].val_top1:.2%}, loss {metrics[-1].train_loss:.3f}", flush=True)
            records.append(as_record(label, config, metrics, result.images))
    command = ["python", "benchmarks/small_network.py", *sys.argv[1:]]
    _, files = write_tables(EXPERIMENT, Outcome(tuple(records), {}), CONDITIONS, arguments.runs, command)
    print(*files, sep="\n")


if __name__ == "__main__":
    main()
