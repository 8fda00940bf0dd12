"""What test_processes.py runs in each of two processes: the same training by DDP and by FSDP.

Arguments: a directory for the runs; it may hold begun ones. On the CPU accelerate leaves FSDP out, so it is forced.
"""

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.tensor import DTensor

from condconv.lab import processes as launch
from condconv.lab.config import TrainConfig
from condconv.lab.saved import load_checkpoint
from condconv.lab.saved.metrics import EpochMetrics
from condconv.lab.train import run, train
from condconv.nn import CondConv2d, TopKRouting
from tests.lab.samples import StopAt, settings

SGD = {"optimizer": "sgd", "lr": 0.05, "epochs": 2, "batch_size": 64, "clip_grad": 1.0, "ema_decay": 0.9}
UPDATES = 898 // 64  # of an epoch
RANDOM = {"mixup": 0.2, "cutmix": 1.0, "expert_dropout": 0.2, "optimizer": "adamw", "lr": 1e-3}


def build(config: TrainConfig, num_classes: int, in_chans: int, first: nn.Module | None = None) -> nn.Module:
    """A network without batch statistics and dropout, so that sharing out the images changes nothing.

    An image uses one of seven experts, so in a small batch some get no gradient; seven do not divide by two, either.
    """
    return nn.Sequential(
        nn.Identity() if first is None else first,
        CondConv2d(in_chans, 8, 3, num_experts=7, routing=partial(TopKRouting, k=1)),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def fsdp_accelerator(config: TrainConfig) -> Accelerator:
    accelerator = launch.create_accelerator(config)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=100, cpu_ram_efficient_loading=False
    )
    return accelerator


def check_statistics(root: Path) -> None:
    """Train with batch norm: both processes end with the mean of their statistics."""
    norm = nn.BatchNorm2d(1)
    result = train(
        settings(root / "norm", epochs=1, ema_decay=0.9, batch_size=64),
        build=lambda config, classes, channels: nn.Sequential(norm, nn.Flatten(), nn.Linear(64, classes)),
    )
    mine = norm.running_mean.clone()
    torch.distributed.all_reduce(mine)
    assert torch.equal(mine / 2, norm.running_mean), "the processes differ"
    assert torch.equal(load_checkpoint(result.last).model["0.running_mean"], norm.running_mean)


def save_sharded(this: run.Run, epoch: EpochMetrics) -> None:
    assert isinstance(this.network[1].weight, DTensor), "FSDP is not in use"
    run.save(this, epoch)


def train_one_epoch(out: Path) -> None:
    """Leave a run after its first epoch, that another number of processes resumes."""
    stop = StopAt(UPDATES + 1, RuntimeError("second epoch"))
    with suppress(RuntimeError):
        train(settings(out, **SGD), build=partial(build, first=stop))


def main(root: Path) -> None:
    torch.set_num_threads(1)
    train_one_epoch(root / "left-ddp")
    for name, changes in (("plain", {}), ("begun", {}), ("random", RANDOM)):
        train(settings(root / f"{name}-ddp", **(SGD | changes)), build=build)
        with (
            patch("condconv.lab.train.run.create_accelerator", fsdp_accelerator),
            patch("condconv.lab.train.loop.save", save_sharded),
        ):
            train(settings(root / f"{name}-fsdp", **(SGD | changes)), build=build)
            if name == "plain":
                train_one_epoch(root / "left-fsdp")
    check_statistics(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
