"""What a training run is: one frozen record, checked when it is made, kept as JSON beside the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from condconv.errors import UsageError


def _option(default: Any, help_text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    The batch size is that of one optimizer update over all processes: the recipe does not change with the
    number of processes or of accumulation steps. `None` means "chosen from the data" unless a field says
    otherwise.

    Raises:
        UsageError: A value breaks the rule of its field.
    """

    data: str = field(metadata={"help": "image folder with train/ and val/ (one folder a class), or 'digits'"})
    model: str = field(metadata={"help": "name of a network, see 'condconv models'"})
    out: str = field(metadata={"help": "directory for checkpoints and metrics; a run that is there goes on"})
    model_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the network as NAME=VALUE, e.g. output_stride=8"}
    )
    image_size: int | None = _option(None, "side of the square input in pixels (default: 224, digits 8)")
    in_chans: int | None = _option(None, "image channels, 1 or 3 (default: 3, digits 1)")
    epochs: int = _option(30, "passes over the training images")
    batch_size: int = _option(64, "images per optimizer update, over all processes")
    grad_accumulation: int = _option(1, "forward passes that one update is spread over")
    optimizer: str = _option("adamw", "optimizer, by its timm name")
    scheduler: str = _option("cosine", "learning rate schedule, by its timm name")
    lr: float = _option(1e-3, "peak learning rate")
    weight_decay: float = _option(0.05, "weight decay (not on biases and norms)")
    warmup_epochs: int | None = _option(None, "epochs of linear warm-up (default: 1, or 0 of 1)")
    label_smoothing: float = _option(0.1, "probability mass spread over the wrong classes")
    clip_grad: float | None = _option(None, "largest gradient norm (default: no clipping)")
    min_crop: float | None = _option(None, "smallest random crop, fraction of the area (default: 0.25, digits 1)")
    hflip: float | None = _option(None, "probability of a horizontal flip (default: 0.5, digits 0)")
    color_jitter: float = _option(0.0, "strength of the colour jitter")
    auto_augment: str | None = _option(None, "timm's augmentation policy, e.g. rand-m9-mstd0.5 (default: none)")
    random_erasing: float = _option(0.0, "probability of erasing a rectangle")
    on_bad_image: str = _option("error", "what to do with an unreadable image", ("error", "skip"))
    workers: int = _option(0, "processes that read images, for each training process")
    seed: int = _option(0, "decides initial weights, image order and augmentation")
    mixed_precision: str = _option("no", "arithmetic of the forward pass", ("no", "bf16", "fp16"))
    channels_last: bool = _option(False, "keep images and kernels in channels-last layout")
    compile: bool = _option(False, "compile the network with torch.compile")
    device: str = _option("auto", "where to train; auto takes the GPU that is there", ("auto", "cpu"))

    def __post_init__(self) -> None:
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise UsageError(f"`{name}` must be {rule}, got {value!r}")
        if self.batch_size % self.grad_accumulation:
            raise UsageError(
                f"`batch_size` must be a multiple of `grad_accumulation` ({self.grad_accumulation}), "
                f"got {self.batch_size}: it counts the images of a whole update"
            )
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise UsageError(
                f"`warmup_epochs` must be below `epochs` ({self.epochs}), got {self.warmup_epochs}: "
                "lower it, or train longer"
            )

    def to_json(self) -> str:
        """Return the record as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read what `to_json` wrote.

        Raises:
            UsageError: The text is not JSON, or names other fields.
        """
        try:
            values = json.loads(text)
            return cls(**values)
        except (json.JSONDecodeError, TypeError) as error:
            raise UsageError(f"`config` must be what this version of condconv writes, got: {error}") from error

    def differences(self, other: TrainConfig) -> list[str]:
        """Name the fields that make `other` another run, with both values; `out` is none of them."""
        pairs = [(each.name, getattr(self, each.name), getattr(other, each.name)) for each in fields(self)]
        return [f"{name}: {ours!r}, not {theirs!r}" for name, ours, theirs in pairs if ours != theirs and name != "out"]


Rule = tuple[Callable[[Any], bool], str]


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

_RULES: dict[str, Rule] = {
    "data": _TEXT,
    "model": _TEXT,
    "out": _TEXT,
    "model_options": ((lambda value: isinstance(value, Mapping)), "a mapping"),
    "image_size": _or_none(_whole(1)),
    "in_chans": _or_none(_one_of(1, 3)),
    "epochs": _whole(1),
    "batch_size": _whole(2),  # one image per update would leave batch normalisation nothing to average on small maps
    "grad_accumulation": _whole(1),
    "optimizer": _TEXT,
    "scheduler": _TEXT,
    "lr": _number(0, open_below=True),
    "weight_decay": _number(0),
    "warmup_epochs": _or_none(_whole(0)),
    "label_smoothing": _number(0, 0.9),
    "clip_grad": _or_none(_number(0, open_below=True)),
    "min_crop": _or_none(_number(0, 1, open_below=True)),
    "hflip": _or_none(_number(0, 1)),
    "color_jitter": _number(0),
    "auto_augment": _or_none(_TEXT),
    "random_erasing": _number(0, 1),
    "on_bad_image": _one_of("error", "skip"),
    "workers": _whole(0),
    "seed": _whole(0),
    "mixed_precision": _one_of("no", "bf16", "fp16"),
    "channels_last": _one_of(True, False),
    "compile": _one_of(True, False),
    "device": _one_of("auto", "cpu"),
}
