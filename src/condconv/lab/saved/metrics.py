"""What a run measures, epoch by epoch, and what it returns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from condconv.errors import UsageError
from condconv.files.checkpoint_format import open_checkpoint
from condconv.files.paths import read_text


@dataclass(frozen=True)
class EpochMetrics:
    """Numbers of one epoch.

    Attributes:
        epoch: Counted from 1.
        lr: Learning rate after the epoch's last update.
        train_loss: Mean loss over the epoch's updates, with label smoothing, augmentation and mixed images.
        val_loss: Mean cross entropy over the validation images, without label smoothing; of the averaged weights
            if the run averages them, as are the accuracies.
        val_top1: Fraction of validation images whose class is ranked first, 0 to 1.
        val_top5: Fraction whose class is among the first five; None with five classes or fewer.
        train_images_per_second: Speed of the training part, over all processes.
        seconds: Wall time of training and validation.
        skipped_images: Unreadable images left out, training and validation together.
        routing_variation: How much routing weights vary over images, relative to their size, 0 to below 1; this and
            what follows is about some of the validation images, and None if no routing depends on the input.
        kernel_variation: How much kernels vary over images, relative to their size, 0 to 1; None also for experts whose
            kernels are not linear in the weights.
        experts_in_use: Effective number of experts over all images, mean over routing functions.
        expert_similarity: Cosine similarity of the experts, mean over pairs and routing functions.
        routing_state: A state of `condconv.analysis.RoutingSummary`, or `"starting"` if it is too early to judge.
    """

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_top1: float
    val_top5: float | None
    train_images_per_second: float
    seconds: float
    skipped_images: int
    routing_variation: float | None = None
    kernel_variation: float | None = None
    experts_in_use: float | None = None
    expert_similarity: float | None = None
    routing_state: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its epochs, and where its files are.

    Attributes:
        metrics: One entry per epoch, in order.
        out: The run's directory, with `config.json`, `metrics.csv` and `metrics.jsonl`.
        last: Checkpoint of the last epoch, complete enough to resume from.
        best: Checkpoint of the epoch with the highest validation accuracy (the earliest of equals).
        params: Number of parameters of the network.
        images: Training images seen, over all epochs.
        routing_note: A sentence if routing gains nothing after the last epoch or the run was too short to judge it,
            with the remedy. Of a run that was finished before, the latter only.
    """

    metrics: tuple[EpochMetrics, ...]
    out: Path
    last: Path
    best: Path
    params: int
    images: int
    routing_note: str | None = None

    @property
    def unusable(self) -> tuple[str, ...]:
        """Names of the run's files that were removed or damaged since it finished."""
        whole = {"best.safetensors": _is_whole(self.best), "metrics.csv": self._has_epochs(self.out / "metrics.csv")}
        return tuple(name for name, is_whole in whole.items() if not is_whole)

    @property
    def best_epoch(self) -> EpochMetrics:
        """The epoch with the highest validation accuracy, the earliest if several are equal."""
        return best_epoch(self.metrics)

    @property
    def train_images_per_second(self) -> float:
        """Median over the epochs."""
        return median(each.train_images_per_second for each in self.metrics)

    def _has_epochs(self, path: Path) -> bool:
        try:
            rows = [*csv.DictReader(io.StringIO(read_text(path)))]
        except (OSError, ValueError, csv.Error):
            return False
        return [row.get("epoch") for row in rows] == [str(each.epoch) for each in self.metrics]


def _is_whole(checkpoint: Path) -> bool:
    try:
        open_checkpoint(checkpoint, "classifier").read("model")
    except UsageError:
        return False
    return True


def best_epoch(metrics: tuple[EpochMetrics, ...]) -> EpochMetrics:
    """Return the epoch with the highest validation accuracy, the earliest if several are equal."""
    return max(metrics, key=lambda each: (each.val_top1, -each.epoch))


def as_csv(rows: Sequence[Any], kind: type[Any]) -> str:
    """Return records of one dataclass as CSV with a header line; a value that does not exist is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in rows)
    return text.getvalue()


def as_json_lines(metrics: Sequence[Any]) -> str:
    """Return epochs, records of one class, as JSON, one object per line; a value that does not exist is null."""
    return "".join(json.dumps(asdict(each)) + "\n" for each in metrics)


def no_better_for(metrics: tuple[EpochMetrics, ...]) -> int:
    """Return how many epochs ago the best one was."""
    return metrics[-1].epoch - best_epoch(metrics).epoch if metrics else 0
