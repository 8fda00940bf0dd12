"""Checkpoints of classifiers: a run after a whole number of epochs. The file itself is `checkpoint_format`'s."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from condconv.errors import UsageError, shown, shown_name
from condconv.files.atomic import write_own
from condconv.files.checkpoint_format import (
    StoredCheckpoint,
    below,
    join_optimizer,
    open_checkpoint,
    prefixed,
    split_optimizer,
    to_bytes,
)
from condconv.lab.config import TrainConfig
from condconv.lab.data.preprocessing import Preprocessing
from condconv.lab.options import MODEL_OPTIONS
from condconv.lab.saved.metrics import EpochMetrics

_LARGEST_DEFAULT = 512  # pixels of images whose size is not set: more than any default


@dataclass(frozen=True)
class Checkpoint:
    """A run after a whole number of epochs.

    Attributes:
        config: The run's settings, as given.
        model_options: Options of the network, as resolved when the run began: with them it is built again, whatever
            the defaults have become.
        class_names: In the order of the network's outputs.
        preprocessing: What an image goes through in evaluation, as resolved when the run began.
        metrics: One entry for each finished epoch.
        train_images: Number of training images, which the schedule counts.
        model: The network's state dict, on the CPU; in a file that is for use, of the average if there is one.
        ema: The state dict of the averaged network, or None if the run averages nothing.
        optimizer: The optimizer's state dict, or None in a file that is for use and not for resuming.
        scaler: State of the fp16 loss scaler, or None.
        versions: Versions of what wrote the file.
        static_layers: Conditional layers of the network that `condconv make-static` made ordinary ones.
        stores: Experts of the layers that `condconv compress` compressed, by name.
    """

    config: TrainConfig
    model_options: Mapping[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: tuple[EpochMetrics, ...]
    train_images: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    static_layers: tuple[str, ...] = ()
    stores: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the metrics belong to: the averaged network's state dict if there is one, else the network's."""
        return self.model if self.ema is None else self.ema

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.preprocessing.size

    @property
    def in_chans(self) -> int:
        """Image channels."""
        return self.preprocessing.channels

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.metrics)

    @property
    def network_config(self) -> TrainConfig:
        """The settings as a builder sees them: resolved, and starting from no other weights."""
        return replace(
            self.config,
            model_options=self.model_options,
            image_size=self.image_size,
            in_chans=self.in_chans,
            pretrained=False,
            init_from=None,
            init_skip=None,
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, not through a link.

    Raises:
        UsageError: The file cannot be written; a previous one of the same name is intact.
    """
    tensors = {**prefixed("model", checkpoint.model), **prefixed("ema", checkpoint.ema or {})}
    header: dict[str, Any] = {
        "kind": "classifier",
        "config": asdict(checkpoint.config),
        "model_options": dict(checkpoint.model_options),
        "class_names": checkpoint.class_names,
        "preprocessing": checkpoint.preprocessing.facts(),
        "metrics": [asdict(each) for each in checkpoint.metrics],
        "train_images": checkpoint.train_images,
        "optimizer": None,
        "scaler": checkpoint.scaler,
        "versions": checkpoint.versions,
        "static_layers": checkpoint.static_layers,
        "stores": dict(checkpoint.stores),
    }
    if checkpoint.optimizer is not None:
        header["optimizer"], optimizer_tensors = split_optimizer(checkpoint.optimizer)
        tensors |= optimizer_tensors
    write_own(path, to_bytes(header, tensors))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        UsageError: The file is missing, damaged, not a checkpoint of condconv, or of another version.
    """
    stored = open_checkpoint(path, "classifier")
    checkpoint = with_weights(describe(stored), stored)
    plain = stored.header["optimizer"]
    if plain is None:
        return checkpoint
    return replace(checkpoint, optimizer=join_optimizer(plain, stored.read("optimizer", "group")))


def describe(stored: StoredCheckpoint) -> Checkpoint:
    """Return a checkpoint as its header describes it, without its tensors.

    Raises:
        UsageError: The settings break their rules.
    """
    header = stored.header
    config = read_config(header["config"], stored.path)
    _check_size(config, header["preprocessing"]["size"], stored.path)
    facts: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in header["preprocessing"].items()
    }
    try:
        MODEL_OPTIONS.check("model_options", header["model_options"])
    except UsageError as error:
        raise _not_taken(stored.path, error) from error
    return Checkpoint(
        config=config,
        model_options=header["model_options"],
        class_names=tuple(header["class_names"]),
        preprocessing=Preprocessing(**facts),
        metrics=tuple(EpochMetrics(**each) for each in header["metrics"]),
        train_images=header["train_images"],
        model={},
        scaler=header["scaler"],
        versions=header["versions"],
        static_layers=tuple(header["static_layers"]),
        stores=header["stores"],
    )


def read_config(settings: Mapping[str, Any], path: Path) -> TrainConfig:
    """Return the settings that a header has.

    Raises:
        UsageError: They break their rules.
    """
    needed = [each.name for each in fields(TrainConfig) if each.default is each.default_factory is MISSING]
    missing, unknown = set(needed) - settings.keys(), settings.keys() - {each.name for each in fields(TrainConfig)}
    if missing or unknown:
        wrong = f"{shown(min(missing))} is missing" if missing else f"there is {shown(min(unknown))}"
        raise _not_taken(path, f"{wrong}: take another copy, or train again")
    try:
        return TrainConfig(**settings)
    except UsageError as error:
        raise _not_taken(path, error) from error


def _check_size(config: TrainConfig, size: int, path: Path) -> None:
    """Check that images are as large as the settings say: a run that is resumed takes memory for that.

    Raises:
        UsageError: They are not.
    """
    if size != config.image_size if config.image_size is not None else size > _LARGEST_DEFAULT:
        raise _not_taken(
            path,
            f"`image_size` is {config.image_size}, but images have {size} pixels: take another copy, or train again",
        )


def _not_taken(path: Path, what: object) -> UsageError:
    return UsageError(
        f"`checkpoint` must hold settings that condconv train takes, got {shown_name(path)}, in which {what}"
    )


def with_weights(checkpoint: Checkpoint, stored: StoredCheckpoint) -> Checkpoint:
    """Return a described checkpoint with the weights of its file.

    Raises:
        UsageError: They are damaged.
    """
    tensors = stored.read("model", "ema")
    return replace(checkpoint, model=below("model", tensors), ema=below("ema", tensors) or None)


def check_can_be_saved(optimizer: dict[str, Any]) -> None:
    """Check that a checkpoint can hold an optimizer's state dict.

    Raises:
        UsageError: It has more than numbers and tensors.
    """
    try:
        json.dumps(split_optimizer(optimizer)[0])
    except TypeError as error:
        raise UsageError(
            f"`optimizer` must keep numbers and tensors only, to be saved, got another kind of state ({error}): take "
            "another optimizer"
        ) from error
