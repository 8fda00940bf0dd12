"""What all functions do that make a checkpoint of another network from a checkpoint's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from condconv.errors import UsageError, shown_name
from condconv.files.paths import check_can_write, check_own
from condconv.lab.data.images import Images
from condconv.lab.saved.checkpoint import Checkpoint, save_checkpoint
from condconv.lab.saved.evaluate import Evaluation, check_finite_loss, evaluate_images
from condconv.lab.saved.reading import Reading, open_images, own_data


def check_out(out: Path, checkpoint: Path, force: bool) -> None:
    """Check, before the work begins, that a network can be written that is made from a checkpoint's.

    Raises:
        UsageError: The file cannot be written, is the checkpoint itself, or exists and is not to be replaced.
    """
    check_can_write(out)
    check_own(out.resolve())
    if not out.exists():
        return
    if checkpoint.exists() and out.samefile(checkpoint):  # by whatever name
        raise UsageError(
            f"`out` must be another file than the checkpoint, got {shown_name(out)}: its experts would be lost, "
            "give a new name"
        )
    # Unlike a page, it may be the only copy of a network that took days to train.
    if not force:
        raise UsageError(
            f"`out` must be a new file, got {shown_name(out)}, which exists: give a new name, or --force to replace it"
        )


class Judge:
    """The images by which a network is remade, and those on which it is scored before and after.

    Args:
        path: The checkpoint's file.
        checkpoint: What it holds.
        data: As in `make_checkpoint_static`.
        data_dir: Where the files of a named dataset are.
        reading: How images are read; scores are of all validation images.
        evaluate: Whether to score at all.

    Attributes:
        images: The training images, if the data has them apart.

    Raises:
        UsageError: The data cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        checkpoint: Checkpoint,
        data: str | None,
        data_dir: str | None,
        reading: Reading,
        evaluate: bool,
    ) -> None:
        def open_split(split: str) -> tuple[Images, bool]:
            images = data or own_data(checkpoint, split)
            return open_images(checkpoint, images, split=split, data_dir=data_dir, skip=reading.skip)

        self._path, self._reading = path, replace(reading, max_images=None)
        self.images, _ = open_split("train")
        self._judged, self._labelled = open_split("val") if evaluate else (self.images, False)

    def score(self, network: nn.Module) -> Evaluation | None:
        """Return the scores of a network; None if it is not evaluated, or on images without classes.

        Raises:
            TrainingError: The network has diverged.
        """
        if not self._labelled:
            return None
        scores = evaluate_images(network, self._judged, self._reading)
        check_finite_loss(scores, self._path)
        return scores


def save_remade(out: str | Path, checkpoint: Checkpoint, state: dict[str, Any], **changes: Any) -> None:
    """Write a checkpoint whose network is another, for use: training cannot resume from it.

    Args:
        out: The file; a link that whoever runs this has named is followed.
        checkpoint: That of the old network.
        state: The new network's state dict.
        **changes: Fields of the checkpoint that say how the new network differs.
    """
    made = replace(checkpoint, model=state, ema=None, optimizer=None, scaler=None, **changes)
    save_checkpoint(Path(out).resolve(), made)
