"""A run: data, network, optimizer and schedule, new or from its last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.data.mixup import Mixup
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from condconv.errors import UsageError
from condconv.files.atomic import write_own
from condconv.lab.config import TrainConfig
from condconv.lab.data.image_data import ImageData, open_data
from condconv.lab.data.loading import EpochSampler, create_loader
from condconv.lab.processes import create_accelerator, micro_batch, prepare, seed_everything
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint, save_checkpoint
from condconv.lab.saved.metrics import EpochMetrics, as_csv, as_json_lines, best_epoch
from condconv.lab.train.averaging import create_average
from condconv.lab.train.loss import create_mixup
from condconv.lab.train.optimization import create_optimizer, create_scheduler
from condconv.lab.train.optimizer_state import load_optimizer_, load_scaler_
from condconv.lab.train.previous import check_same_data, last_path, restore_weights_
from condconv.lab.train.sharding import gathered, share_out_
from condconv.nn.elastic import elastic_units


@dataclass
class Run:
    """The parts of a run.

    `model_options` are the network's, as resolved. `network` is the plain module, `model` the same as accelerate wraps
    it, `average` the one that is scored, if the run averages weights. `members` is the number of experts or ranks of
    the largest member in an elastic run, else 0: to find it takes a look at all layers.
    """

    config: TrainConfig
    accelerator: Accelerator
    data: ImageData
    model_options: Mapping[str, Any]
    network: nn.Module
    model: nn.Module
    average: ModelEmaV3 | None
    mixup: Mixup | None
    optimizer: Any
    scheduler: Any
    sampler: EpochSampler
    train_loader: Any
    val_loader: Any
    updates_per_epoch: int
    members: int = 0
    metrics: tuple[EpochMetrics, ...] = ()

    @property
    def scored(self) -> nn.Module:
        """The network that is evaluated."""
        return self.network if self.average is None else self.average.module

    @property
    def out(self) -> Path:
        """The run's directory."""
        return Path(self.config.out)


def set_up(config: TrainConfig, build: networks.Build, checkpoint: Checkpoint | None = None) -> Run:
    """Build a run, new or as a checkpoint left it.

    Raises:
        UsageError: Data, network, optimizer or schedule cannot be made from the settings, or the checkpoint is of
            other classes or another network.
    """
    if build is networks.build_from_zoo:  # before any data is fetched
        networks.check_name(config.model)
    accelerator = create_accelerator(config)
    _check_same_epoch(config, checkpoint)
    micro = micro_batch(config, accelerator)
    with accelerator.local_main_process_first():  # what has to be fetched is fetched once
        data = open_data(config, None if checkpoint is None else checkpoint.preprocessing)
    seed_everything(config.seed)
    train_images = len(data.train)
    updates = train_images // config.batch_size
    options = (
        networks.resolved_options(config, data.preprocessing.size, updates * config.epochs)
        if checkpoint is None
        else dict(checkpoint.model_options)
    )
    network = _build_network(config, build, data, checkpoint, options)
    members = _check_elastic(network, accelerator) if config.elastic else 0
    average = _build_average(config, network, accelerator, checkpoint)
    optimizer = create_optimizer(config, network)
    scheduler = create_scheduler(config, optimizer, updates)
    sampler = EpochSampler(train_images, config.batch_size, config.seed)
    train_loader = create_loader(data.train, micro, workers=config.workers, sampler=sampler)
    val_loader = create_loader(data.val, micro, workers=config.workers)
    if config.compile:
        network.compile()
    model, prepared, train_loader, val_loader = prepare(accelerator, network, optimizer, train_loader, val_loader)
    run = Run(
        config=config,
        accelerator=accelerator,
        data=data,
        model_options=options,
        network=network,
        model=model,
        average=average,
        mixup=create_mixup(config, len(data.class_names)),
        optimizer=prepared,
        scheduler=scheduler,
        sampler=sampler,
        train_loader=train_loader,
        val_loader=val_loader,
        updates_per_epoch=updates,
        members=members,
    )
    if checkpoint is not None:
        _restore_(run, checkpoint)
    return run


def _check_elastic(network: nn.Module, accelerator: Accelerator) -> int:
    """Return the largest number of experts or ranks of an elastic network's members.

    Raises:
        UsageError: The network has no members, or there are several processes.
    """
    most = elastic_units(network).number
    if accelerator.num_processes > 1:
        raise UsageError(
            f"`elastic` must be False with several processes, got {accelerator.num_processes}: gradients are shared "
            "once for each forward pass, in which smaller members leave parameters out; start one process"
        )
    return most


def _check_same_epoch(config: TrainConfig, checkpoint: Checkpoint | None) -> None:
    epochs = gather_object([0 if checkpoint is None else checkpoint.epoch])
    if len(set(epochs)) > 1:
        raise UsageError(
            f"`out` must be one directory for all processes, got {config.out}, where some find {min(epochs)} finished "
            f"epochs and others {max(epochs)}: give a directory that all machines share"
        )


def _build_network(
    config: TrainConfig,
    build: networks.Build,
    data: ImageData,
    checkpoint: Checkpoint | None,
    options: Mapping[str, Any],
) -> nn.Module:
    if checkpoint is None:
        # A builder sees what the data is like, not what was asked for.
        options = {**networks.start_options(config), **config.model_options, **options}
        config = replace(
            config, model_options=options, image_size=data.preprocessing.size, in_chans=data.preprocessing.channels
        )
    else:  # its weights replace all others, whose file may be gone
        config = checkpoint.network_config
    network = build(config, len(data.class_names), data.preprocessing.channels)
    networks.start_(network, config)
    networks.check_output(network, len(data.class_names), data.preprocessing.channels, data.preprocessing.size)
    if checkpoint is not None:
        check_same_data(checkpoint, data, config)
        restore_weights_(network, checkpoint.model, last_path(config.out))
    if config.sync_bn:
        network = convert_sync_batchnorm(network)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def _build_average(
    config: TrainConfig, network: nn.Module, accelerator: Accelerator, checkpoint: Checkpoint | None
) -> ModelEmaV3 | None:
    if config.ema_decay is None:
        return None
    average = create_average(network, config.ema_decay, foreach=not accelerator.is_fsdp2)
    if checkpoint is not None:
        restore_weights_(average.module, checkpoint.weights, last_path(config.out))
    average.to(accelerator.device)
    if accelerator.is_fsdp2:
        share_out_(average.module, accelerator)
    return average


def _restore_(run: Run, checkpoint: Checkpoint) -> None:
    if checkpoint.optimizer is None:
        path = last_path(run.out)
        raise UsageError(
            f"`out` must hold a last.safetensors to resume from, got {path} without optimizer state: give another --out"
        )
    load_optimizer_(run.optimizer, checkpoint.optimizer, last_path(run.out))
    load_scaler_(run.accelerator.scaler, checkpoint.scaler, last_path(run.out))
    run.metrics = checkpoint.metrics  # the learning rate came with the optimizer; the next update sets it again


def save(run: Run, epoch: EpochMetrics) -> None:
    """Write the checkpoints and the tables of metrics after an epoch; each file is complete at any moment.

    `last` comes at the end: whatever is interrupted before it is done again, with the same result, by the
    resumed run.

    Args:
        run: The run, which has the epoch among its metrics once all is written.
        epoch: Its numbers.

    Raises:
        UsageError: A file cannot be written.
    """
    metrics = (*run.metrics, epoch)
    checkpoint = _checkpoint(run, metrics)  # every process helps to put tensors together; one writes
    if run.accelerator.is_main_process:
        write_own(run.out / "metrics.csv", as_csv(metrics, EpochMetrics))
        write_own(run.out / "metrics.jsonl", as_json_lines(metrics))
        if best_epoch(metrics) is epoch:
            in_use = replace(checkpoint, model=checkpoint.weights, ema=None, optimizer=None, scaler=None)
            save_checkpoint(run.out / "best.safetensors", in_use)
        save_checkpoint(last_path(run.out), checkpoint)
    run.metrics = metrics
    run.accelerator.wait_for_everyone()


def _checkpoint(run: Run, metrics: tuple[EpochMetrics, ...]) -> Checkpoint:
    scaler = run.accelerator.scaler
    return Checkpoint(
        config=run.config,
        model_options=run.model_options,
        class_names=run.data.class_names,
        preprocessing=run.data.preprocessing,
        metrics=metrics,
        train_images=len(run.data.train),
        model=gathered(run.network.state_dict()),
        ema=None if run.average is None else gathered(run.average.module.state_dict()),
        optimizer=gathered(run.optimizer.state_dict()),
        scaler=None if scaler is None else scaler.state_dict(),
    )
