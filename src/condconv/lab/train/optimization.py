"""Optimizer and learning rate schedule, both timm's."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping, Set
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
)
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from condconv.errors import UsageError, first_line, shown
from condconv.lab.config import TrainConfig
from condconv.nn import SoftmaxRouting
from condconv.nn.block_routing import routing_functions
from condconv.nn.conditional import conditional_layers

_log = logging.getLogger(__name__)

_BY_THE_GRADIENT = ("sgd", "momentum", "nesterov")
"""Optimizers whose steps are as long as the gradient is."""

_PART_OF_THE_GRADIENT = dict.fromkeys((*_BY_THE_GRADIENT, "rmsprop", "rmsproptf"), 5e-4)
"""Default decay of optimizers whose steps grow with the gradient: AdamW's 0.05 would draw all kernels to zero."""

_OF_GROUPS = ("filter_bias_and_bn", "layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale")
"""Arguments of timm's own, which say how it groups parameters."""

_SETTINGS = ("params", "lr", "weight_decay")
"""Arguments of optimizers that are settings of a run, or not a user's to give."""

_CYCLES = ("num_epochs", "min_lr", "cycle_mul", "cycle_decay", "cycle_limit")
_ALWAYS = ("warmup_epochs", "warmup_lr", "noise", "noise_pct", "noise_std", "noise_seed")
_ALL = ("warmup_prefix", *_ALWAYS)
SCHEDULES: dict[str, tuple[str, ...]] = {
    "cosine": (*_CYCLES, "k_decay", *_ALL),
    "tanh": (*_CYCLES, *_ALL),
    "step": ("decay_epochs", "decay_rate", *_ALL),
    "multistep": ("decay_milestones", "decay_rate", *_ALL),
    "poly": (*_CYCLES, "decay_rate", "k_decay", *_ALL),
    "constant": _ALWAYS,
}
"""Schedules that depend on the update alone, which resuming needs, and the arguments that each uses."""

_OF_LIBRARIES = (TypeError, ValueError, LookupError, AssertionError, ArithmeticError, RuntimeError, ImportError)


def create_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name, with four rules for the parameters.

    - Biases and norms are not decayed, unless `norm_decay` says so.
    - Routing functions are decayed as kernels are, at their own rate, unless `router_decay` is off. No norm follows a
      router, so decay pulls it towards constant routing; `docs/results.md` has when that is lost
      altogether.
    - Routing functions learn at `router_lr_scale` times the rate, and decay as they would without.
    - Experts learn at `expert_lr_scale` times the rate, and decay as they would without. In a step of SGD the mixture
      of E experts moves as many times as far as a static kernel as the squares of their weights add up to: E / 4 where
      sigmoids start, but 1 / E where a softmax starts, so that E makes it move as far as a static kernel.

    Raises:
        UsageError: timm does not know the name, the optimizer does not use an argument or refuses it, or it needs
            second derivatives.
    """
    _check_used("optimizer_options", config.optimizer_options, config.optimizer, _optimizer_arguments(config.optimizer))
    name = config.optimizer.lower().removeprefix("lookahead_")  # as timm reads it
    decay = _PART_OF_THE_GRADIENT.get(name, 0.05) if config.weight_decay is None else config.weight_decay
    try:
        optimizer = create_optimizer_v2(
            network,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=decay,
            **{"filter_bias_and_bn": not config.norm_decay, **config.optimizer_options},
        )
    except _OF_LIBRARIES as error:
        name = "optimizer_options" if config.optimizer_options else "optimizer"
        raise UsageError(
            f"`{name}` must be what {config.optimizer} can be made with here, got "
            f"{shown(getattr(config, name))} ({first_line(error)}): give other values, or another optimizer"
        ) from error
    if getattr(optimizer, "is_second_order", False):  # timm's word for those that differentiate twice
        raise UsageError(
            f"`optimizer` must need first derivatives only, got {shown(config.optimizer)}: take adamw or lamb, which do"
        )
    routings, layers = routing_functions(network), conditional_layers(network).values()
    routers = {parameter for each in routings.values() for parameter in each.parameters()}
    experts = {parameter for each in layers for parameter in each.parameters()} - routers
    if name in _BY_THE_GRADIENT and config.expert_lr_scale == 1:
        # Around a centre, the kernel that examples share learns as a static one does.
        uncentred = {routings.get(each.routing_fn) for each in layers if not each.experts.centred}
        _say_that_mixtures_move_little(uncentred, name)
    router_decay = 1 / config.router_lr_scale if config.router_decay else 0.0
    _set_apart_(optimizer, routers, lr_scale=config.router_lr_scale, decay_scale=router_decay)
    _set_apart_(optimizer, experts, lr_scale=config.expert_lr_scale, decay_scale=1 / config.expert_lr_scale)
    return optimizer


def _optimizer_arguments(optimizer: str) -> list[str]:
    """Return the names of the arguments that one of timm's optimizers uses, as far as they may be options.

    Raises:
        UsageError: timm does not know the name.
    """
    name = optimizer.lower().rpartition("_")[2]  # behind lookahead_
    try:
        info, kind = get_optimizer_info(name), get_optimizer_class(name, bind_defaults=False)
    except _OF_LIBRARIES as error:
        raise UsageError(
            f"`optimizer` must be a name that timm knows, got {shown(optimizer)} ({first_line(error)}): sgd, adamw, "
            "rmsproptf and lamb are some"
        ) from error
    if optimizer.lower().removeprefix("lookahead_") != name:  # timm would take the last word and drop the rest
        raise UsageError(
            f"`optimizer` must have no prefix but lookahead_, got {shown(optimizer)}: timm would take {name}; write "
            "that, or a name of `timm.optim.list_optimizers()`"
        )
    # timm drops these without a word where it has noted that an optimizer lacks them.
    dropped = [each for each in ("eps", "betas") if not getattr(info, f"has_{each}")]
    return [each for each in (*inspect.signature(kind).parameters, *_OF_GROUPS) if each not in (*_SETTINGS, *dropped)]


def _check_used(setting: str, given: Mapping[str, Any], of: str, used: Collection[str]) -> None:
    """Check that options are used: timm silently ignores many that the chosen optimizer or schedule does not have.

    Raises:
        UsageError: One is not.
    """
    for name in given:
        if name not in used:
            raise UsageError(
                f"`{setting}` must be arguments that {of} uses, got {shown(name)}: leave it out, or give one of "
                f"{', '.join(used)}"
            )


def _say_that_mixtures_move_little(functions: Set[nn.Module | None], name: str) -> None:
    """Warn about softmax routing at the common learning rate, which nothing else in a run shows."""
    experts = max((each.num_experts for each in functions if isinstance(each, SoftmaxRouting)), default=1)
    if experts > 1:
        _log.warning(
            "softmax routing with %s: in a step the mixture of %d experts moves 1/%d as far as a static kernel would; "
            "--expert-lr-scale %d makes up for it",
            *(name, experts, experts, experts),
        )


def _set_apart_(
    optimizer: torch.optim.Optimizer, parameters: Set[nn.Parameter], *, lr_scale: float, decay_scale: float
) -> None:
    """Move parameters that the run treats differently into separate groups, in place.

    Timm forms the groups first: what its options say of them holds, and its schedules heed `lr_scale`.
    """
    if lr_scale == decay_scale == 1:
        return
    for group in tuple(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if parameter in parameters]
        if own:
            group["params"] = [parameter for parameter in group["params"] if parameter not in parameters]
            scale, decay = group.get("lr_scale", 1.0) * lr_scale, group["weight_decay"] * decay_scale
            optimizer.add_param_group(group | {"params": own, "weight_decay": decay, "lr_scale": scale})


def create_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Any:
    """Return timm's schedule of that name, counted in updates and set to the first one.

    Raises:
        UsageError: The schedule does not use an argument, or refuses it.
    """
    _check_used("scheduler_options", config.scheduler_options, config.scheduler, SCHEDULES[config.scheduler])
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
        scheduler.step_update(config.epochs * updates_per_epoch - 1)  # what fails after the warm-up fails here
        scheduler.step_update(0)
    except _OF_LIBRARIES as error:
        raise UsageError(
            f"`scheduler_options` must be what the schedule {config.scheduler} can be made with, got "
            f"{shown(dict(config.scheduler_options))} ({first_line(error)}): give other values"
        ) from error
    return scheduler
