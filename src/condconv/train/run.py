"""A run put together: data, network, optimizer and schedule, fresh or from its last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from condconv.errors import UsageError
from condconv.train import network as networks
from condconv.train.atomic import write_atomic
from condconv.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from condconv.train.config import TrainConfig
from condconv.train.data import ImageData, open_data
from condconv.train.launch import create_accelerator, micro_batch, seed_everything
from condconv.train.loading import EpochSampler, create_loader
from condconv.train.metrics import EpochMetrics, as_csv, best_epoch
from condconv.train.optimization import create_optimizer, create_scheduler


@dataclass
class Run:
    """The parts of a run; `network` is the plain module, `model` the same as accelerate wraps it."""

    config: TrainConfig
    accelerator: Accelerator
    data: ImageData
    network: nn.Module
    model: nn.Module
    optimizer: Any
    scheduler: Any
    sampler: EpochSampler
    train_loader: Any
    val_loader: Any
    updates_per_epoch: int
    metrics: tuple[EpochMetrics, ...] = ()

    @property
    def out(self) -> Path:
        """The run's directory."""
        return Path(self.config.out)


def last_path(out: str | Path) -> Path:
    """Where a run keeps the checkpoint it resumes from."""
    return Path(out) / "last.safetensors"


def previous_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """Return the last checkpoint of this run, or None if none of its epochs is finished.

    Raises:
        UsageError: The directory holds a run with other settings, or a checkpoint that cannot be read.
    """
    path = last_path(config.out)
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    differences = config.differences(checkpoint.config)
    if differences:
        raise UsageError(
            f"`out` must be a new directory or one with a run of the same settings, got {config.out}, which "
            f"differs in {'; '.join(differences)}: give another --out, or the settings of that run"
        )
    return checkpoint


def set_up(config: TrainConfig, build: networks.Build) -> Run:
    """Build a fresh run.

    Raises:
        UsageError: Data, network, optimizer or schedule cannot be made from the settings.
    """
    accelerator = create_accelerator(config)
    micro = micro_batch(config, accelerator)
    data = open_data(config)
    seed_everything(config.seed)
    network = _build_network(config, build, data)
    optimizer = create_optimizer(config, network)
    train_images = len(data.train)
    updates = train_images // config.batch_size
    scheduler = create_scheduler(config, optimizer, updates)
    sampler = EpochSampler(train_images, config.batch_size, config.seed)
    train_loader = create_loader(data.train, micro, workers=config.workers, sampler=sampler)
    val_loader = create_loader(data.val, micro * config.grad_accumulation, workers=config.workers)
    if config.compile:
        network.compile()
    model, prepared, train_loader, val_loader = accelerator.prepare(network, optimizer, train_loader, val_loader)
    return Run(
        config,
        accelerator,
        data,
        network,
        model,
        prepared,
        scheduler,
        sampler,
        train_loader,
        val_loader,
        updates,
    )


def _build_network(config: TrainConfig, build: networks.Build, data: ImageData) -> nn.Module:
    options = networks.default_options(config, data.image_size)
    network = build(replace(config, model_options=options), len(data.class_names), data.in_chans)
    networks.check_output(network, len(data.class_names), data.in_chans, data.image_size)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def restore_(run: Run, checkpoint: Checkpoint) -> None:
    """Put a fresh run where the checkpoint left it, in place.

    Raises:
        UsageError: The data has other classes, or the checkpoint another network's weights or no optimizer.
    """
    path = last_path(run.out)
    if checkpoint.class_names != run.data.class_names:
        raise UsageError(
            f"`data` must have the classes of the run in {run.out} ({len(checkpoint.class_names)}), got "
            f"{len(run.data.class_names)} other ones: restore the class folders, or give another --out"
        )
    networks.load_weights_(run.network, checkpoint.model, path)
    if checkpoint.optimizer is None:
        raise UsageError(f"`out` must hold a last.safetensors to resume from, got {path} without optimizer state")
    run.optimizer.load_state_dict(checkpoint.optimizer)
    if run.accelerator.scaler is not None and checkpoint.scaler is not None:
        run.accelerator.scaler.load_state_dict(checkpoint.scaler)
    run.metrics = checkpoint.metrics  # the learning rate came with the optimizer; the next update sets it anew


def save(run: Run) -> None:
    """Write the checkpoints, the table of metrics and the settings; each file is whole at any moment.

    `last` comes at the end: whatever is interrupted before it is done again, with the same result, by the
    resumed run.

    Raises:
        UsageError: A file cannot be written.
    """
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        checkpoint = Checkpoint(
            config=run.config,
            class_names=run.data.class_names,
            image_size=run.data.image_size,
            in_chans=run.data.in_chans,
            metrics=run.metrics,
            model=run.network.state_dict(),
            optimizer=run.optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
        )
        write_atomic(run.out / "metrics.csv", as_csv(run.metrics))
        if best_epoch(run.metrics) is run.metrics[-1]:
            save_checkpoint(run.out / "best.safetensors", replace(checkpoint, optimizer=None, scaler=None))
        save_checkpoint(last_path(run.out), checkpoint)
    run.accelerator.wait_for_everyone()
