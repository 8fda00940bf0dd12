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
    """Return timm's optimizer of that name, with two rules for the parameters.

    - Biases and norms are not decayed.
    - Routing functions learn at `router_lr_scale` times the rate, and are not decayed unless `router_decay` says so.

    A router's input is all positive and as long as its layer has channels, so that at the rate of the kernels its
    sigmoids run into 0 and 1 within an epoch, whatever the image. No norm follows it either: decay draws it to where
    all images are routed alike. `docs/results.md` has what each costs.

    Deviation: the authors' routers learn and decay as all weights do, at a decay of 1e-5.

    Raises:
        UsageError: timm does not know the name.
    """
    try:
        return create_optimizer_v2(
            network,
            opt=config.optimizer,
            lr=config.lr,
            param_group_fn=partial(_groups, config),
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


def _groups(config: TrainConfig, network: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in groups; those of routers come last, with the `lr_scale` that timm's schedules heed."""
    routers = {name: each for name, each in network.named_parameters() if "routing_fn" in name.split(".")}
    spared = () if config.router_decay else tuple(routers)
    groups = param_groups_weight_decay(network, config.weight_decay, no_weight_decay_list=spared)
    routing = {id(each) for each in routers.values()}
    split = [
        {**group, "params": [each for each in group["params"] if (id(each) in routing) == scaled]} | scale
        for scaled, scale in ((False, {}), (True, {"lr_scale": config.router_lr_scale}))
        for group in groups
    ]
    return [group for group in split if group["params"]]


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
