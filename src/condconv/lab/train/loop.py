"""The training loop, once, for one process or many."""

from __future__ import annotations

import logging
import math
import sys
import time
from pathlib import Path

import torch
from timm.utils.distributed import distribute_bn
from torch import Tensor
from tqdm import tqdm

from condconv.counting.parameters import count_parameters
from condconv.errors import TrainingError, TrainingInterrupted
from condconv.files.atomic import remove_leftovers, write_own
from condconv.lab.compiler import compiler_explained
from condconv.lab.config import TrainConfig
from condconv.lab.data.images import IGNORED
from condconv.lab.data.loading import batches
from condconv.lab.data.workers import ShortageError, shortages_explained
from condconv.lab.processes import only_here, seed_everything
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import check_can_be_saved
from condconv.lab.saved.evaluate import evaluate
from condconv.lab.saved.metrics import EpochMetrics, TrainResult, no_better_for
from condconv.lab.train.averaging import update_average_
from condconv.lab.train.elastic import backward_through_members
from condconv.lab.train.loss import mean_loss, mix
from condconv.lab.train.previous import FILES, check_files, last_path, previous_checkpoint
from condconv.lab.train.run import Run, save, set_up
from condconv.lab.train.tracking import finish_logs, log_epoch, start_logs
from condconv.lab.train.watching import RoutingWatch, conclusion, is_settled, warning, watch
from condconv.nn import anneal_

_log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    build: networks.Build = networks.build_from_zoo,
    progress: bool = True,
    title: str = "train",
    wait: bool = False,
) -> TrainResult:
    """Train a network, or resume the run that `config.out` holds.

    Every epoch starts from random numbers that (seed, epoch, process) decide, so a run that was interrupted
    and resumed gives the same numbers as one that was not: bit for bit on the CPU.

    Args:
        config: The run. A finished run of the same settings is returned without training.
        build: Builds the network; for networks that are not in the zoo.
        progress: Whether to show a bar, which only a terminal gets.
        title: Text before the bar.
        wait: Whether to wait for another run in the directory, and return its result; otherwise another run is
            an error.

    Returns:
        The metrics of all epochs, and where the files are.

    Raises:
        UsageError: Settings, data, network or an earlier run in the directory do not fit.
        TrainingError: The loss is no longer a finite number, the machine lacks memory or file handles, or torch cannot
            compile the network here. What was saved stays.
        TrainingInterrupted: Ctrl-C; the finished epochs are saved.
    """
    with only_here(Path(config.out), wait=wait):
        check_files(Path(config.out))
        run = set_up(config, build, previous_checkpoint(config, build))
        _write_settings(run)
        if not _is_finished(run):
            start_logs(run)
        try:
            with shortages_explained(), compiler_explained():
                watched = _train_epochs(run, progress=progress, title=title)
        except KeyboardInterrupt:
            raise TrainingInterrupted(_what_is_saved(run)) from None
        except ShortageError as error:
            raise ShortageError(f"{error}, which resumes the run; {_what_is_saved(run)}") from error
        finally:
            finish_logs(run)
    params = count_parameters(run.network.parameters())
    images = len(run.metrics) * len(run.sampler)
    best, routing = run.out / "best.safetensors", conclusion(run, watched)
    return TrainResult(run.metrics, run.out, last_path(run.out), best, params, images, routing)


def _write_settings(run: Run) -> None:
    if not run.accelerator.is_main_process:
        return
    remove_leftovers(*(run.out / name for name in FILES))
    write_own(run.out / "config.json", run.config.to_json() + "\n")


def _what_is_saved(run: Run) -> str:
    done = len(run.metrics)
    if done == 0:
        return "stopped in epoch 1: nothing is saved yet"
    epochs = "epoch 1 is" if done == 1 else f"epochs 1 to {done} are"
    return f"stopped after epoch {done} of {run.config.epochs}: {epochs} saved in {run.out}"


def _train_epochs(run: Run, *, progress: bool, title: str) -> RoutingWatch | None:
    """Train the epochs that are left; returns the watch of the last one, if there is any."""
    watched: RoutingWatch | None = None
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
        while not _is_finished(run):
            epoch = len(run.metrics) + 1
            started = time.perf_counter()
            train_loss, skipped, rate = _train_epoch(run, epoch, bar)
            last, watched = _validate(run, epoch, train_loss, skipped, rate, started)
            said = None if watched is None else warning(run, last, watched)
            save(run, last)
            log_epoch(run, last)
            bar.set_postfix(epoch=f"{epoch}/{epochs}", loss=f"{train_loss:.3f}", val=f"{100 * last.val_top1:.1f}%")
            with tqdm.external_write_mode(sys.stderr):  # the bar makes room
                _print_epoch(run, last, watched, show=show)
                if said is not None:
                    _log.warning("%s", said)
    return watched


def _print_epoch(run: Run, last: EpochMetrics, watched: RoutingWatch | None, *, show: bool) -> None:
    """Print one line for an epoch, unless the bar of a terminal has all of it: it has no room for routing."""
    found = None if watched is None else watched.found
    line = (
        f"epoch {last.epoch}/{run.config.epochs}: train loss {last.train_loss:.4f}, top-1 {100 * last.val_top1:.2f} %"
    )
    line += "" if found is None else f"; routing: {found.numbers}"
    _log.info("%s", line)
    if show and (found is not None or not sys.stderr.isatty()):
        print(line, file=sys.stderr, flush=True)


def _is_finished(run: Run) -> bool:
    patience = run.config.patience
    out_of_patience = patience is not None and no_better_for(run.metrics) >= patience
    return len(run.metrics) >= run.config.epochs or out_of_patience


def _train_epoch(run: Run, epoch: int, bar: tqdm[None]) -> tuple[float, int, float]:
    """Train one epoch; returns the mean loss, the images skipped and the images per second."""
    accelerator = run.accelerator
    seed_everything(run.config.seed, epoch, accelerator.process_index)
    run.sampler.epoch = epoch
    run.model.train()
    update = (epoch - 1) * run.updates_per_epoch
    losses: list[Tensor] = []
    rates: list[float] = []
    skipped = torch.zeros((), dtype=torch.long, device=accelerator.device)
    start = time.perf_counter()
    for images, targets in batches(run.train_loader):
        skipped += (targets == IGNORED).sum()
        rates.append(run.optimizer.param_groups[0]["lr"])
        losses.append(_step(run, images, targets))
        if accelerator.sync_gradients:
            update += 1
            if update == 1:  # before an epoch's work depends on it
                check_can_be_saved(run.optimizer.state_dict())
            _after_update(run, update)
            bar.update(run.config.batch_size)
        if len(losses) > 1:  # the one before is computed already: reading it does not hold up the device
            _check_finite(run, losses[-2].item(), epoch, len(losses) - 1, rates[-2])
    _check_finite(run, losses[-1].item(), epoch, len(losses), rates[-1])
    seconds = time.perf_counter() - start
    mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    return mean, int(accelerator.reduce(skipped, "sum").item()), len(run.sampler) / seconds


def _step(run: Run, images: Tensor, targets: Tensor) -> Tensor:
    """Run one batch forward and backward, and update at the end of the accumulation; returns the loss, a scalar."""
    accelerator, config = run.accelerator, run.config
    if run.mixup is not None:
        images, targets = mix(run.mixup, images, targets)
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with accelerator.accumulate(run.model):
        if config.elastic:
            loss = backward_through_members(run, images, targets)
        else:
            loss = mean_loss(run.model(images), targets, config.label_smoothing)
            accelerator.backward(loss)
        if accelerator.sync_gradients and config.clip_grad is not None:
            accelerator.clip_grad_norm_(run.model.parameters(), config.clip_grad)
        run.optimizer.step()
        run.optimizer.zero_grad()
    return loss.detach()


def _after_update(run: Run, update: int) -> None:
    """Advance what depends on updates: temperatures, the averaged weights, the learning rate."""
    anneal_(run.network)
    if run.average is not None:
        update_average_(run.average, run.network, update)
    run.scheduler.step_update(update)


def _validate(
    run: Run, epoch: int, train_loss: float, skipped: int, rate: float, started: float
) -> tuple[EpochMetrics, RoutingWatch | None]:
    if run.accelerator.num_processes > 1:
        # Each process keeps batch statistics of its own share of the images; their mean is scored, saved, gone on with.
        for network in dict.fromkeys((run.network, run.scored)):
            distribute_bn(network, run.accelerator.num_processes, reduce=True)
    watched = watch(run)
    over = None if watched is None else watched.over
    scores = evaluate(run.accelerator, run.scored, run.val_loader, watch=over)
    lr = run.optimizer.param_groups[0]["lr"]
    _check_finite(run, scores.loss, epoch, run.updates_per_epoch * run.config.grad_accumulation, lr)
    metrics = EpochMetrics(
        epoch=epoch,
        lr=lr,
        train_loss=train_loss,
        val_loss=scores.loss,
        val_top1=scores.top1,
        val_top5=scores.top5,
        train_images_per_second=rate,
        seconds=time.perf_counter() - started,
        skipped_images=skipped + scores.skipped_images,
        **({} if watched is None else watched.metrics(is_settled(run, epoch))),
    )
    return metrics, watched


def _check_finite(run: Run, loss: float, epoch: int, step: int, lr: float) -> None:
    if math.isfinite(loss):
        return
    kept = f"epochs 1 to {len(run.metrics)} are saved in {run.out}" if run.metrics else "no epoch was finished"
    raise TrainingError(
        f"the loss became {loss} in epoch {epoch}, step {step}, at learning rate {lr:.3g}; {kept}: "
        "train in another --out with a lower --lr, more --warmup-epochs, --clip-grad 1, or --mixed-precision no"
    )
