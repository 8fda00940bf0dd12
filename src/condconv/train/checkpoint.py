"""Checkpoints: one safetensors file each, tensors by name, everything else as JSON in the file's own header.

Nothing is ever unpickled, so reading a checkpoint from a stranger runs none of the stranger's code.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

from condconv.atomic import write_atomic
from condconv.errors import UsageError
from condconv.train.config import TrainConfig
from condconv.train.data import INTERPOLATION, val_crop
from condconv.train.metrics import EpochMetrics
from condconv.train.normalization import Normalization

FORMAT = 3
"""Version of the file's layout; a reader refuses one it does not know."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a whole number of epochs.

    Attributes:
        config: The run's settings, as given.
        class_names: In the order of the network's outputs.
        image_size: Side of the square input in pixels, as resolved.
        in_chans: Image channels, as resolved.
        normalization: What the pixels are normalised by, as resolved.
        metrics: One entry for each finished epoch.
        train_images: Number of training images, which the schedule counts.
        model: The network's state dict, on the CPU; in a file that is for use, of the average if there is one.
        ema: The state dict of the averaged network, or None if the run averages nothing.
        optimizer: The optimizer's state dict, or None in a file that is for use and not for resuming.
        scaler: State of the fp16 loss scaler, or None.
        versions: Versions of what wrote the file.
        static_layers: Conditional layers of the network that `condconv freeze` made ordinary ones.
    """

    config: TrainConfig
    class_names: tuple[str, ...]
    image_size: int
    in_chans: int
    normalization: Normalization
    metrics: tuple[EpochMetrics, ...]
    train_images: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    static_layers: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the metrics belong to: the averaged network's state dict if there is one, else the network's."""
        return self.model if self.ema is None else self.ema

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What an image goes through before the network sees it in evaluation, as `condconv.export.export` takes it."""
        return {
            "size": self.image_size,
            "channels": self.in_chans,
            "crop": val_crop(self.image_size),
            "interpolation": INTERPOLATION,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
        }

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.metrics)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        UsageError: The file cannot be written; a previous one of the same name is intact.
    """
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in (checkpoint.ema or {}).items()}
    header = {
        "format": FORMAT,
        "config": asdict(checkpoint.config),
        "class_names": checkpoint.class_names,
        "image_size": checkpoint.image_size,
        "in_chans": checkpoint.in_chans,
        "normalization": asdict(checkpoint.normalization),
        "metrics": [asdict(each) for each in checkpoint.metrics],
        "train_images": checkpoint.train_images,
        "optimizer": None,
        "scaler": checkpoint.scaler,
        "versions": checkpoint.versions,
        "static_layers": checkpoint.static_layers,
    }
    if checkpoint.optimizer is not None:
        header["optimizer"], optimizer_tensors = _flatten(checkpoint.optimizer)
        tensors |= optimizer_tensors
    # A copy of each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(tensors, metadata={"condconv": json.dumps(header)}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        UsageError: The file is missing, truncated, not a checkpoint of ours, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"`checkpoint` must be a file, got {path}: give the path of a best.safetensors or last.safetensors"
        )
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(
            f"`checkpoint` must be a whole safetensors file, got {path} ({error}): it is truncated or of "
            f"another kind; "
            "take another copy, or train again"
        ) from error
    try:
        return _from_header(json.loads(metadata["condconv"]), tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"`checkpoint` must be written by condconv train (format {FORMAT}), got {path}, "
            f"whose header lacks or contradicts {error}: give a checkpoint of this version"
        ) from error


def _from_header(header: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    if header["format"] != FORMAT:
        raise ValueError(f"format {FORMAT} (it has format {header['format']})")
    optimizer = None if header["optimizer"] is None else _unflatten(header["optimizer"], tensors)
    normalization = {name: tuple(values) for name, values in header["normalization"].items()}
    return Checkpoint(
        config=TrainConfig(**header["config"]),
        class_names=tuple(header["class_names"]),
        image_size=header["image_size"],
        in_chans=header["in_chans"],
        normalization=Normalization(**normalization),
        metrics=tuple(EpochMetrics(**each) for each in header["metrics"]),
        train_images=header["train_images"],
        model=_below("model.", tensors),
        ema=_below("ema.", tensors) or None,
        optimizer=optimizer,
        scaler=header["scaler"],
        versions=header["versions"],
        static_layers=tuple(header["static_layers"]),
    )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_can_be_saved(optimizer: dict[str, Any]) -> None:
    """Check that a checkpoint can hold an optimizer's state dict.

    Raises:
        UsageError: It has more than numbers and tensors.
    """
    _flatten(optimizer)


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split an optimizer's state dict into JSON and tensors: `optimizer.<parameter>.<entry>`, `group.<group>.<entry>`.

    Some keep a tensor in their groups (LAMB: the step), or a dtype (adafactorbv), which becomes its name.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        scalars[str(index)] = {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
        tensors |= {f"optimizer.{index}.{name}": each for name, each in entries.items() if isinstance(each, Tensor)}
    groups = []
    for number, group in enumerate(state["param_groups"]):
        kept = {name: value for name, value in group.items() if not isinstance(value, Tensor)}
        groups.append({name: str(value) if isinstance(value, torch.dtype) else value for name, value in kept.items()})
        tensors |= {f"group.{number}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
    header = {"state": scalars, "param_groups": groups}
    try:
        json.dumps(header)
    except TypeError as error:
        raise UsageError(
            f"`optimizer` must keep numbers and tensors only, to be saved, got another kind of state ({error}): take "
            "another optimizer"
        ) from error
    return header, tensors


def _unflatten(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    state = {int(index): dict(entries) for index, entries in header["state"].items()}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        index, _, entry = rest.partition(".")
        if kind == "optimizer":
            state[int(index)][entry] = tensor
        elif kind == "group":
            header["param_groups"][int(index)][entry] = tensor
    groups = [{name: _as_dtype(value) for name, value in group.items()} for group in header["param_groups"]]
    return {"state": state, "param_groups": groups}


def _as_dtype(value: Any) -> Any:
    """Return the dtype of that name, or what is none as it is."""
    written = isinstance(value, str) and value.startswith("torch.")
    named = getattr(torch, value.removeprefix("torch."), None) if written else None
    return named if isinstance(named, torch.dtype) else value
