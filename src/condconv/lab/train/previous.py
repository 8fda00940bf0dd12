"""What an earlier call left in a run's directory: whether it can be resumed from, and written over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from condconv.errors import UsageError, shown_name
from condconv.files.checkpoint_format import open_checkpoint
from condconv.files.paths import check_own
from condconv.lab.config import TrainConfig
from condconv.lab.data.image_data import ImageData
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint, describe, load_checkpoint
from condconv.lab.saved.rebuild import check_finite, check_stored, planned_shapes

LOGS = "condconv"
"""The folder of TensorBoard's files."""
FILES = ("config.json", "metrics.csv", "metrics.jsonl", "best.safetensors", "last.safetensors", "wandb-id")
"""What a run writes into its directory; no other process may write them while the run holds it."""


def check_files(out: Path) -> None:
    """Check that a run, and what logs it, can write into a directory.

    Raises:
        UsageError: A link, a pipe or a device has the name of one of its files or folders, or they are exchanged.
    """
    files, folders = [out / name for name in FILES], [out / LOGS, out / "wandb"]
    check_own(*files, *folders)
    wrong = [each for each in files if each.is_dir()] + [each for each in folders if each.is_file()]
    if wrong:
        raise UsageError(
            f"`out` must hold a run's files as files and its folders as folders, got {shown_name(wrong[0])}: remove "
            "it, or give another --out"
        )


def last_path(out: str | Path) -> Path:
    """The path of the checkpoint from which a run resumes."""
    return Path(out) / "last.safetensors"


def previous_checkpoint(config: TrainConfig, build: networks.Build = networks.build_from_zoo) -> Checkpoint | None:
    """Return the last checkpoint of this run, or None if none of its epochs is finished.

    Args:
        config: The run.
        build: Builds its network, with which the file is compared before it is read.

    Raises:
        UsageError: The directory holds a run with other settings, a checkpoint that cannot be read, or one that would
            be lost.
    """
    path = last_path(config.out)
    if not path.exists():
        _check_no_other_best(config)
        return None
    stored = open_checkpoint(path, "classifier")
    described = describe(stored)
    config.check_same(described.config)
    check_stored(stored, planned_shapes(described, path, build))
    return load_checkpoint(path)


def _check_no_other_best(config: TrainConfig) -> None:
    """Check that a run without a last checkpoint would not replace the best one of a run whose last one was removed.

    Raises:
        UsageError: It would.
    """
    best = Path(config.out) / "best.safetensors"
    if best.exists() and not _is_of_first_epoch(config, best):
        raise UsageError(
            f"`out` must have a last.safetensors where it has a best.safetensors, got {shown_name(config.out)} with "
            "the latter alone, which a new run would replace: move it to another place, or give another --out"
        )


def _is_of_first_epoch(config: TrainConfig, best: Path) -> bool:
    """Return whether this run wrote its best checkpoint after its first epoch: it was stopped before the last one."""
    try:
        described = describe(open_checkpoint(best, "classifier"))
        config.check_same(described.config)
    except UsageError:
        return False
    return described.epoch == 1


def restore_weights_(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put a network where a checkpoint left it, in place.

    Raises:
        UsageError: They are another network's weights.
        TrainingError: They are not finite: the next loss would not be finite either.
    """
    networks.load_weights_(network, weights, path)
    check_finite(network, path, "put an earlier copy in its place, or train again in another --out")


def check_same_data(checkpoint: Checkpoint, data: ImageData, config: TrainConfig) -> None:
    """Check that the images are still those of the run.

    Raises:
        UsageError: There are others.
    """
    if checkpoint.class_names != data.class_names:
        raise UsageError(
            f"`data` must have the classes of the run in {config.out} ({len(checkpoint.class_names)}), got "
            f"{len(data.class_names)} other ones: restore the class folders, or give another --out"
        )
    if checkpoint.train_images != len(data.train):
        raise UsageError(
            f"`data` must have the training images of the run in {config.out} ({checkpoint.train_images}), got "
            f"{len(data.train)}: its schedule counts them; restore the images, or give another --out"
        )
