"""What the values of a training run's settings have to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from condconv.errors import UsageError

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is right, and what it must be, in words."""


def _whole(least: int) -> Rule:
    return (lambda value: type(value) is int and value >= least), f"a whole number of at least {least}"


def _number(least: float, most: float = math.inf, *, open_below: bool = False) -> Rule:
    def holds(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return bool((least < value if open_below else least <= value) and value <= most)

    if math.isinf(most):
        return holds, f"a finite number {'above' if open_below else 'of at least'} {least:g}"
    return (
        holds,
        f"a number {'above' if open_below else 'from'} {least:g} {'and at most' if open_below else 'to'} {most:g}",
    )


def _one_of(*choices: Any) -> Rule:
    return (lambda value: value in choices), "one of " + ", ".join(map(str, choices))


def _or_none(rule: Rule) -> Rule:
    return (lambda value: value is None or rule[0](value)), f"{rule[1]}, or None"


_TEXT: Rule = ((lambda value: isinstance(value, str) and value != ""), "a text that is not empty")
_OPTIONS: Rule = ((lambda value: isinstance(value, Mapping)), "a mapping")
_BOOL: Rule = ((lambda value: isinstance(value, bool)), "True or False")

RULES: dict[str, Rule] = {
    "data": _TEXT,
    "val_data": _or_none(_TEXT),
    "data_dir": _or_none(_TEXT),
    "data_options": _OPTIONS,
    "image_size": _or_none(_whole(1)),
    "in_chans": _or_none(_one_of(1, 3)),
    "normalization": _or_none(_one_of("imagenet", "inception")),
    "on_bad_image": _one_of("error", "skip"),
    "workers": _whole(0),
    "model": _TEXT,
    "model_options": _OPTIONS,
    "pretrained": _BOOL,
    "init_from": _or_none(_TEXT),
    "init_skip": _or_none(_TEXT),
    "epochs": _whole(1),
    "batch_size": _whole(2),  # one image per update would leave batch normalisation nothing to average on small maps
    "grad_accumulation": _whole(1),
    "optimizer": _TEXT,
    "optimizer_options": _OPTIONS,
    "lr": _number(0, open_below=True),
    "router_lr_scale": _number(0, open_below=True),
    "scheduler": _TEXT,
    "scheduler_options": _OPTIONS,
    "warmup_epochs": _or_none(_whole(0)),
    "clip_grad": _or_none(_number(0, open_below=True)),
    "patience": _or_none(_whole(1)),
    "weight_decay": _number(0),
    "router_decay": _BOOL,
    "norm_decay": _BOOL,
    "label_smoothing": _number(0, 0.9),
    "expert_dropout": _number(0, 0.9),
    "ema_decay": _or_none(_number(0, 0.999999)),
    "mixup": _number(0),
    "cutmix": _number(0),
    "min_crop": _or_none(_number(0, 1, open_below=True)),
    "hflip": _or_none(_number(0, 1)),
    "color_jitter": _number(0),
    "auto_augment": _or_none(_TEXT),
    "random_erasing": _number(0, 1),
    "out": _TEXT,
    "log_with": _or_none(_one_of("tensorboard", "wandb")),
    "seed": _whole(0),
    "mixed_precision": _one_of("no", "bf16", "fp16"),
    "sync_bn": _BOOL,
    "channels_last": _BOOL,
    "compile": _BOOL,
    "device": _one_of("auto", "cpu"),
}


def check(name: str, value: Any) -> None:
    """Check one setting.

    Raises:
        UsageError: It is not what its rule says.
    """
    holds, rule = RULES[name]
    if not holds(value):
        raise UsageError(f"`{name}` must be {rule}, got {value!r}")
