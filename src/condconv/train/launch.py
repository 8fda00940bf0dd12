"""Processes, devices and random numbers of a run."""

from __future__ import annotations

import random

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState

from condconv.errors import UsageError
from condconv.train.config import TrainConfig


def create_accelerator(config: TrainConfig) -> Accelerator:
    """Return accelerate's view of this process, for one process or for many that a launcher has started.

    Raises:
        UsageError: The precision needs another device, or the batch cannot be shared out evenly.
    """
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
        )
    except ValueError as error:
        raise UsageError(
            f"`mixed_precision` must be one that the device can do, got {config.mixed_precision!r} ({error})"
        ) from error
    return accelerator


def micro_batch(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the images of one forward pass in one process.

    Raises:
        UsageError: The update's images cannot be shared out evenly.
    """
    shares = config.grad_accumulation * accelerator.num_processes
    if config.batch_size % shares:
        raise UsageError(
            f"`batch_size` must be a multiple of processes x grad_accumulation "
            f"({accelerator.num_processes} x {config.grad_accumulation}), got {config.batch_size}: "
            f"take {max(1, config.batch_size // shares) * shares}"
        )
    return config.batch_size // shares


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch from a tuple of numbers, for example (seed, epoch, process).

    Neighbouring tuples give unrelated streams.
    """
    state = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
