"""The training loop, once, for one process or many."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from condconv.errors import TrainingError, TrainingInterrupted, UsageError
from condconv.nn import anneal_
from condconv.train import network as networks
from condconv.train.atomic import write_atomic
from condconv.train.config import TrainConfig
from condconv.train.evaluate import evaluate
from condconv.train.images import IGNORED
from condconv.train.launch import seed_everything
from condconv.train.loading import batches
from condconv.train.metrics import EpochMetrics, TrainResult
from condconv.train.run import Run, last_path, previous_checkpoint, restore_, save, set_up

_log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    build: networks.Build = networks.build_from_zoo,
    progress: bool = True,
    title: str = "train",
) -> TrainResult:
    """Train a network, or goes on with the run that `config.out` holds.

    Every epoch starts from random numbers that (seed, epoch, process) decide, so a run that was interrupted
    and resumed gives the same numbers as one that was not: bit for bit on the CPU.

    Args:
        config: The run. A finished run of the same settings is returned without training.
        build: Builds the network; for networks that are not in the zoo.
        progress: Whether to show a bar, which only a terminal gets.
        title: Text before the bar.

    Returns:
        The metrics of all epochs, and where the files are.

    Raises:
        UsageError: Settings, data, network or an earlier run in the directory do not fit.
        TrainingError: The loss is no longer a finite number. What was saved stays.
        TrainingInterrupted: Ctrl-C; the finished epochs are saved.
    """
    checkpoint = previous_checkpoint(config)
    run = set_up(config, build)
    if checkpoint is not None:
        restore_(run, checkpoint)
    _write_settings(run)
    try:
        _train_epochs(run, progress=progress, title=title)
    except KeyboardInterrupt:
        raise TrainingInterrupted(_what_is_saved(run)) from None
    params = sum(each.numel() for each in run.network.parameters())
    return TrainResult(run.metrics, run.out, last_path(run.out), run.out / "best.safetensors", params)


def _write_settings(run: Run) -> None:
    if not run.accelerator.is_main_process:
        return
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`out` must be a directory that can be made, got {run.out} ({error.strerror})") from error
    write_atomic(run.out / "config.json", run.config.to_json() + "\n")


def _what_is_saved(run: Run) -> str:
    done = len(run.metrics)
    if done == 0:
        return "stopped in epoch 1: nothing is saved yet"
    epochs = "epoch 1 is" if done == 1 else f"epochs 1 to {done} are"
    return f"stopped after epoch {done} of {run.config.epochs}: {epochs} saved in {Path(run.out)}"


def _train_epochs(run: Run, *, progress: bool, title: str) -> None:
    epochs, images = run.config.epochs, len(run.sampler)
    show = progress and run.accelerator.is_main_process
    bar = tqdm(
        total=epochs * images,
        initial=len(run.metrics) * images,
        desc=title,
        unit="img",
        unit_scale=True,
        disable=None if show else True,
    )
    with bar:
        for epoch in range(len(run.metrics) + 1, epochs + 1):
            train_loss, skipped, rate = _train_epoch(run, epoch, bar)
            run.metrics += (_validate(run, epoch, train_loss, skipped, rate),)
            save(run)
            last = run.metrics[-1]
            bar.set_postfix(epoch=f"{epoch}/{epochs}", loss=f"{train_loss:.3f}", val=f"{100 * last.val_top1:.1f}%")
            _log.info("epoch %d/%d: train loss %.4f, top-1 %.4f", epoch, epochs, train_loss, last.val_top1)


def _train_epoch(run: Run, epoch: int, bar: tqdm[None]) -> tuple[float, int, float]:
    """Train one epoch; returns the mean loss, the images skipped and the images per second."""
    accelerator, config = run.accelerator, run.config
    seed_everything(config.seed, epoch, accelerator.process_index)
    run.sampler.epoch = epoch
    run.model.train()
    update = (epoch - 1) * run.updates_per_epoch
    losses: list[Tensor] = []
    skipped = torch.zeros((), dtype=torch.long, device=accelerator.device)
    start = time.perf_counter()
    for images, targets in batches(run.train_loader):
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.accumulate(run.model):
            loss = _loss(run.model(images), targets, config.label_smoothing)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                if config.clip_grad is not None:
                    accelerator.clip_grad_norm_(run.model.parameters(), config.clip_grad)
                update += 1
            run.optimizer.step()
            run.optimizer.zero_grad()
        if accelerator.sync_gradients:
            anneal_(run.network)
            run.scheduler.step_update(update)
            bar.update(config.batch_size)
        skipped += (targets == IGNORED).sum()
        losses.append(loss.detach())
        if len(losses) > 1:  # the one before is computed already: reading it does not hold up the device
            _check_finite(run, losses[-2].item(), epoch, len(losses) - 1)
    _check_finite(run, losses[-1].item(), epoch, len(losses))
    seconds = time.perf_counter() - start
    mean_loss = accelerator.reduce(torch.stack(losses).double().mean(), "mean").item()
    return mean_loss, int(accelerator.reduce(skipped, "sum").item()), len(run.sampler) / seconds


def _loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy over the images that could be read; zero, with zero gradients, if none could."""
    total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _validate(run: Run, epoch: int, train_loss: float, skipped: int, rate: float) -> EpochMetrics:
    if run.accelerator.num_processes > 1:
        # Each process keeps batch statistics of its own share; the ones of the first are saved, so they are
        # scored too.
        for buffer in run.network.buffers():
            buffer.copy_(broadcast(buffer))
    scores = evaluate(run.accelerator, run.network, run.val_loader)
    _check_finite(run, scores.loss, epoch, run.updates_per_epoch * run.config.grad_accumulation)
    return EpochMetrics(
        epoch=epoch,
        lr=run.optimizer.param_groups[0]["lr"],
        train_loss=train_loss,
        val_loss=scores.loss,
        val_top1=scores.top1,
        val_top5=scores.top5,
        train_images_per_second=rate,
        skipped_images=skipped + scores.skipped_images,
    )


def _check_finite(run: Run, loss: float, epoch: int, step: int) -> None:
    if math.isfinite(loss):
        return
    lr = run.optimizer.param_groups[0]["lr"]
    kept = f"epochs 1 to {len(run.metrics)} are saved in {run.out}" if run.metrics else "no epoch was finished"
    raise TrainingError(
        f"the loss became {loss} in epoch {epoch}, step {step}, at learning rate {lr:.3g}; {kept}: "
        "train with a lower --lr, more --warmup-epochs, --clip-grad 1, or --mixed-precision no"
    )
