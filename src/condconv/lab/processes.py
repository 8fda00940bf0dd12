"""Processes of a run: its directory, which only one run uses at a time, its devices and random numbers."""

from __future__ import annotations

import os
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedType
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs
from filelock import FileLock, Timeout

from condconv.errors import UsageError, first_line, require_extra, shown, shown_name
from condconv.files.paths import make_directory
from condconv.lab.config import TrainConfig

_LAUNCH = re.compile(r"ACCELERATE_|(MASTER_(ADDR|PORT)|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE)$")  # set by launchers
LOCK = ".lock"
"""Name of the file that a run holds in its directory."""


@contextmanager
def only_here(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a run's directory, which is created if necessary, against other runs.

    The operating system lets go of it when the process ends, however it does. Of several processes of one run the
    first holds it. A directory in which nothing was left is removed.

    Args:
        out: The directory.
        wait: Whether to wait for another run in it.

    Raises:
        UsageError: It cannot be made, or another run is using it and `wait` is false.
    """
    rank = os.environ.get("RANK", "0")  # torchrun's and accelerate's number of this process
    if not rank.isdecimal():
        raise UsageError(f"`RANK` must be a number in the environment, got {shown(rank)}: correct or unset it")
    if rank != "0":
        yield
        return
    make_directory(out)
    try:
        lock = FileLock(out / LOCK, timeout=-1 if wait else 0)
        lock.acquire()
        out.mkdir(exist_ok=True)  # a run that was waited for may have left nothing
    except Timeout:
        raise UsageError(
            f"`out` must be a directory that no other run is using, got {shown_name(out)}: wait for that run, or "
            "give another --out"
        ) from None
    except OSError as error:
        raise UsageError(
            f"`out` must be a directory to write in, got {shown_name(out)} ({error.strerror}): check its permissions "
            f"and what is called {LOCK} in it, or give another --out"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # it is gone, or another run has put something there this moment
            if [each.name for each in out.iterdir()] == [LOCK]:
                (out / LOCK).unlink()  # while it is held: who waits for it finds that it is gone
                out.rmdir()
        lock.release()


def create_accelerator(config: TrainConfig) -> Accelerator:
    """Return accelerate's view of this process, for one process or for many that a launcher has started.

    Raises:
        UsageError: The precision needs another device, or the launcher asks for what this loop cannot do.
        MissingExtraError: The package to log with is not installed.
    """
    if config.log_with is not None:
        # accelerate leaves a logger out without a word if its package is missing.
        require_extra(config.log_with, config.log_with)
    # accelerate keeps these in globals for the life of a process and refuses a second run of another
    # precision; the process group itself stays.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.grad_accumulation,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            step_scheduler_with_optimizer=False,
            log_with=config.log_with,
            project_dir=config.out,
            # The processes' batch statistics are averaged after each epoch, not replaced by the first one's each step.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ValueError, ImportError, RuntimeError) as error:  # RuntimeError: of a device that torch does not know
        if "mixed precision" in str(error):
            raise UsageError(
                f"`mixed_precision` must be supported by the device, got {config.mixed_precision!r} "
                f"({first_line(error)}): take no"
            ) from error
        launch = ", ".join(
            f"{name}={shown(os.environ[name], 40)}" for name in sorted(os.environ) if _LAUNCH.match(name)
        )
        raise UsageError(
            f"`accelerate` must be able to start here, got {launch or 'none of its variables'} ({first_line(error)}): "
            "correct these variables of the environment, or unset them"
        ) from error
    _check_launch(config, accelerator)
    return accelerator


def prepare(accelerator: Accelerator, *objects: Any) -> Any:
    """Return accelerate's forms of a network, its optimizer and its loaders, in their order."""
    with warnings.catch_warnings():  # accelerate has no other name yet for what `create_accelerator` asks of DDP
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare(*objects)


def _check_launch(config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse settings that accelerate would silently ignore."""
    rank = os.environ.get("RANK", "0")
    if rank != str(accelerator.process_index):  # then no process would make the directory
        raise UsageError(
            f"`RANK` must be the number of this process, {accelerator.process_index} of {accelerator.num_processes}, "
            f"got {shown(rank)} in the environment: unset it, or start all processes by accelerate launch"
        )
    kind = accelerator.distributed_type
    plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if kind not in plain and not accelerator.is_fsdp2:
        raise UsageError(
            f"`accelerate launch` must start plain processes or FSDP of version 2, got {kind.value}: "
            "pass --use_fsdp --fsdp_version 2, or none of these"
        )
    if kind in plain and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UsageError(
            f"`accelerate launch --use_fsdp` must run on several GPUs, got {accelerator.num_processes} x "
            f"{accelerator.device.type}: leave it out"
        )
    if config.sync_bn and accelerator.device.type == "cpu":
        raise UsageError(
            "`sync_bn` must be False on the CPU, got True: leave it out, torch shares batch statistics on GPUs only"
        )
    if config.compile and accelerator.is_fsdp2:
        raise UsageError(
            "`compile` must be False with FSDP, got True: leave it out, and pass --dynamo_backend to accelerate launch"
        )


def micro_batch(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the images of one forward pass in one process.

    Raises:
        UsageError: The update's images cannot be shared out evenly.
    """
    shares = config.grad_accumulation * accelerator.num_processes
    said = f"processes x grad_accumulation ({accelerator.num_processes} x {config.grad_accumulation})"
    if config.batch_size % shares:
        raise UsageError(
            f"`batch_size` must be a multiple of {said}, got {config.batch_size}: "
            f"take {max(1, config.batch_size // shares) * shares}"
        )
    micro = config.batch_size // shares
    if micro == 1:
        raise UsageError(
            f"`batch_size` must be at least twice {said}, got {config.batch_size}: of one image at a time batch "
            f"normalisation has nothing to average on small maps, take {2 * shares}"
        )
    if micro % 2 and (config.mixup or config.cutmix):
        raise UsageError(
            f"`batch_size` must be an even multiple of {said} with mixup or cutmix, which pair images, got "
            f"{config.batch_size}: take {(micro + 1) * shares}"
        )
    return micro


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch from a tuple of numbers, for example (seed, epoch, process).

    Neighbouring tuples give unrelated streams.
    """
    state = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
