"""Optimizer and learning rate schedule, both timm's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from condconv.errors import UsageError
from condconv.train.config import TrainConfig


def create_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name; biases, norms and what routes are not decayed.

    No norm follows a router, so that decay draws its weights towards zero, where every input is routed alike: at the
    decay that suits kernels before a batch norm, routing is lost within a dozen epochs (`docs/results.md`).

    Raises:
        UsageError: timm does not know the name.
    """
    try:
        return create_optimizer_v2(
            network,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            param_group_fn=partial(
                param_groups_weight_decay,
                weight_decay=config.weight_decay,
                no_weight_decay_list=_names_of_routers(network),
            ),
            **config.optimizer_options,
        )
    except TypeError as error:
        raise UsageError(
            f"`optimizer_options` must be arguments of {config.optimizer}, got {dict(config.optimizer_options)} "
            f"({error}): drop what it does not take"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        raise UsageError(
            f"`optimizer` must be a name that timm knows, got {config.optimizer!r} ({error}): "
            "sgd, adamw, rmsproptf and lamb are some"
        ) from error


def _names_of_routers(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters() if "routing_fn" in name.split(".")]


def create_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
    """Return timm's schedule of that name, counted in updates and set to the first one.

    Raises:
        UsageError: The name is not one of those that depend on the update alone, which resuming needs.
    """
    known = ("cosine", "tanh", "step", "multistep", "poly", "constant")
    if config.scheduler not in known:
        raise UsageError(f"`scheduler` must be one of {', '.join(known)}, got {config.scheduler!r}")
    options: dict[str, Any] = {
        "num_epochs": config.epochs,
        "warmup_epochs": min(1, config.epochs - 1) if config.warmup_epochs is None else config.warmup_epochs,
        "warmup_lr": config.lr / 100,
        **config.scheduler_options,
    }
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer, config.scheduler, step_on_epochs=False, updates_per_epoch=updates_per_epoch, **options
        )
    except TypeError as error:
        raise UsageError(
            f"`scheduler_options` must be arguments of timm's schedules, got {dict(config.scheduler_options)} "
            f"({error}): decay_epochs, decay_rate and min_lr are some"
        ) from error
    scheduler.step_update(0)
    return scheduler
