"""Optimizer and learning rate schedule, both timm's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from condconv.errors import UsageError
from condconv.train.config import TrainConfig


def create_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name, with three rules for the parameters.

    - Biases and norms are not decayed, unless `norm_decay` says so.
    - Routing functions are decayed as kernels are, unless `router_decay` is off. No norm follows a router, so that
      decay draws it to where all images are routed alike; `docs/results.md` has when that is lost altogether.
    - Routing functions learn at `router_lr_scale` times the rate.

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
    """Return the parameters by whether they decay; what has a rate of its own comes last, with timm's `lr_scale`."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        routes = "routing_fn" in name.split(".")
        # As timm does; a bias of experts has two dimensions.
        is_kernel = parameter.ndim > 1 and not name.endswith(".bias")
        decays = (is_kernel or config.norm_decay) and (not routes or config.router_decay)
        if parameter.requires_grad:
            groups.setdefault((routes and config.router_lr_scale != 1, decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
        | ({"lr_scale": config.router_lr_scale} if scaled else {})
        for (scaled, decays), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


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
