"""The files that a detector's run writes after each epoch and resumes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from condconv.errors import UsageError
from condconv.files.atomic import write_own
from condconv.files.checkpoint_format import below, join_optimizer, open_checkpoint, prefixed, split_optimizer, to_bytes
from condconv.lab.config import TrainConfig
from condconv.lab.saved.checkpoint import read_config
from condconv.lab.saved.metrics import as_csv, as_json_lines
from condconv.lab.saved.network import shapes
from condconv.lab.saved.rebuild import check_stored
from condconv.lab.train.optimizer_state import load_optimizer_, load_scaler_
from condconv.lab.train.previous import restore_weights_


@dataclass(frozen=True)
class DetectionMetrics:
    """Numbers of one epoch.

    Attributes:
        epoch: Counted from 1.
        lr: Learning rate after the epoch's last update.
        train_loss: Mean over the epoch's updates of the sum of SSD's losses.
        ap: COCO's AP on the validation images, 0 to 1.
        seconds: Wall time of training and validation.
    """

    epoch: int
    lr: float
    train_loss: float
    ap: float
    seconds: float


@dataclass(frozen=True)
class DetectionData:
    """Facts about the data that must be the same when a run is resumed.

    Attributes:
        categories: Kinds of objects, which the heads are for.
        images: Number of training images, which the schedule counts.
    """

    categories: tuple[str, ...]
    images: int


def save(
    config: TrainConfig,
    data: DetectionData,
    metrics: Sequence[DetectionMetrics],
    detector: nn.Module,
    optimizer: Any,
    scaler: Any | None,
) -> None:
    """Write the checkpoint and the tables of metrics into the run's directory.

    Raises:
        UsageError: A file cannot be written.
    """
    plain, tensors = split_optimizer(optimizer.state_dict())
    header = {
        "kind": "detector",
        "config": asdict(config),
        "categories": data.categories,
        "images": data.images,
        "metrics": [asdict(each) for each in metrics],
        "optimizer": plain,
        "scaler": None if scaler is None else scaler.state_dict(),
        "versions": {},
    }
    content = to_bytes(header, {**prefixed("model", detector.state_dict()), **tensors})
    out = Path(config.out)
    write_own(out / "metrics.csv", as_csv(metrics, DetectionMetrics))
    write_own(out / "metrics.jsonl", as_json_lines(metrics))
    write_own(_path(config), content)


def restore_(
    config: TrainConfig, data: DetectionData, detector: nn.Module, optimizer: Any, scaler: Any | None
) -> tuple[DetectionMetrics, ...]:
    """Restore detector, optimizer and loss scaler as they were after the last finished epoch.

    Returns:
        The epochs so far; none if the directory holds no run.

    Raises:
        UsageError: The file cannot be used, or is of a run with other settings or data.
    """
    path = _path(config)
    if not path.exists():
        return ()
    stored = open_checkpoint(path, "detector")
    header = stored.header
    config.check_same(read_config(header["config"], path))
    saved = DetectionData(tuple(header["categories"]), header["images"])
    if saved != data:
        raise UsageError(
            f"`data` must have the categories and the number of images of the run in {config.out} "
            f"({len(saved.categories)} and {saved.images}), got {len(data.categories)} and {data.images}: restore "
            "the annotations, or give another --out"
        )
    check_stored(stored, shapes(detector.state_dict()))
    tensors = stored.read("model", "optimizer", "group")
    restore_weights_(detector, below("model", tensors), path)
    load_optimizer_(optimizer, join_optimizer(header["optimizer"], tensors), path)
    load_scaler_(scaler, header["scaler"], path)
    return tuple(DetectionMetrics(**each) for each in header["metrics"])


def _path(config: TrainConfig) -> Path:
    return Path(config.out) / "last.safetensors"
