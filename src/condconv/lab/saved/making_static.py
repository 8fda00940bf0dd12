"""Checkpoints with fewer conditional layers: those that hardly depend on the image become ordinary layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from condconv.convert import make_static_
from condconv.errors import UsageError, shown_name
from condconv.files.paths import check_can_write
from condconv.lab.data.images import Images
from condconv.lab.data.workers import shortages_explained
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import save_checkpoint
from condconv.lab.saved.evaluate import Evaluation, check_finite_loss, evaluate_images
from condconv.lab.saved.inspection import record
from condconv.lab.saved.reading import Reading, open_images, own_data
from condconv.lab.saved.rebuild import load_trained
from condconv.nn.choice import LayerChoice, choose_named
from condconv.nn.conditional import conditional_layers


@dataclass(frozen=True)
class StaticCheckpoint:
    """What `make_checkpoint_static` did.

    Attributes:
        layers: Names of the layers that are ordinary ones now.
        conditional_left: Conditional layers that are left.
        images: Images over which the routing weights were averaged.
        params_before: Parameters of the network before.
        params_after: Parameters of the network after.
        before: Scores of the network before; None if it was not evaluated, or on images without classes.
        after: Scores of the network after, in the same cases.
    """

    layers: tuple[str, ...]
    conditional_left: int
    images: int
    params_before: int
    params_after: int
    before: Evaluation | None
    after: Evaluation | None


@shortages_explained()
def make_checkpoint_static(
    path: str | Path,
    out: str | Path,
    layers: LayerChoice,
    data: str | None = None,
    *,
    skip: LayerChoice | None = None,
    data_dir: str | None = None,
    reading: Reading | None = None,
    force: bool = False,
    evaluate: bool = False,
    build: networks.Build = networks.build_from_zoo,
) -> StaticCheckpoint:
    """Make conditional layers of a trained network ordinary ones and write the network to a new checkpoint.

    Each layer gets the kernel that its mean routing weights mix. Routing functions that nothing uses any more are
    left out. The new checkpoint is for use; training cannot resume from it.

    Args:
        path: A checkpoint of `train`, or of this function.
        out: File to write; never the checkpoint itself, whose experts would be lost.
        layers: Which conditional layers, as a `LayerChoice`, such as `"blocks.3.*"`.
        data: Images to average over: the training images of a directory that has them apart, else all that are
            there, with classes or without; None for the digits,
            if the network was trained on them.
        skip: Which of the layers stay conditional; `None` for none.
        data_dir: Where the files of a named dataset are.
        reading: How images are read; None for all of them, on the GPU if there is one.
        force: Whether a file of the name `out` is replaced; else it is an error, said before the work begins.
        evaluate: Whether to score the network before and after on validation images of the same data.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, a choice matches no conditional layer, or the file
            cannot be written or is there already.
        TrainingError: The network has diverged.
    """
    check_out(Path(out), Path(path), force)
    reading = reading or Reading()
    checkpoint, network = load_trained(path, build=build)
    chosen = tuple(choose_named(conditional_layers(network), layers, skip, kind="conditional layers of the network"))

    def open_split(split: str) -> tuple[Images, bool]:
        images = data or own_data(checkpoint, split)
        return open_images(checkpoint, images, split=split, data_dir=data_dir, skip=reading.skip)

    images, _ = open_split("train")
    judged, labelled = open_split("val") if evaluate else (images, False)

    def score() -> Evaluation | None:
        scores = evaluate_images(network, judged, replace(reading, max_images=None)) if labelled else None
        if scores is not None:
            check_finite_loss(scores, path)
        return scores

    before = score()
    report = record(reading.place(network), reading.read(images, reading.choose(images), "routing"), None)
    params_before = count_parameters(network)
    make_static_(network, {name: report.routing(name).mean_vector for name in chosen})
    static = (*checkpoint.static_layers, *chosen)
    save_checkpoint(
        Path(out).resolve(),  # a link that whoever runs this has named
        replace(checkpoint, model=network.state_dict(), ema=None, optimizer=None, scaler=None, static_layers=static),
    )
    return StaticCheckpoint(
        layers=chosen,
        conditional_left=len(conditional_layers(network)),
        images=int(report.routings[0].examples),
        params_before=params_before,
        params_after=count_parameters(network),
        before=before,
        after=score(),
    )


def check_out(out: Path, checkpoint: Path, force: bool) -> None:
    """Check, before the work begins, that a network can be written that is made from a checkpoint's.

    Raises:
        UsageError: The file cannot be written, is the checkpoint itself, or exists and is not to be replaced.
    """
    check_can_write(out)
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


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
