"""Checkpoints whose experts are one kernel and a small routed part each, made from trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from condconv.convert import CompressionReport, compress_experts_
from condconv.lab.data.images import Images
from condconv.lab.data.workers import shortages_explained
from condconv.lab.saved import network as networks
from condconv.lab.saved.evaluate import Evaluation
from condconv.lab.saved.reading import Reading
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.saved.remaking import Judge, check_out, save_remade
from condconv.nn.choice import LayerChoice


@dataclass(frozen=True)
class CompressedCheckpoint:
    """What `compress_checkpoint` did.

    Attributes:
        report: Of the layers.
        before: Scores of the network before; None if it was not evaluated, or on images without classes.
        after: Scores of the network after, in the same cases.
    """

    report: CompressionReport
    before: Evaluation | None
    after: Evaluation | None


@shortages_explained()
def compress_checkpoint(
    path: str | Path,
    out: str | Path,
    experts: str = "shared(outputs=16)",
    data: str | None = None,
    *,
    grouped: str | None = "shared(kernels=2)",
    layers: LayerChoice | None = None,
    skip: LayerChoice | None = None,
    max_error: float = 0.3,
    repair_epochs: int = 0,
    repair_lr: float = 1e-3,
    data_dir: str | None = None,
    reading: Reading | None = None,
    force: bool = False,
    evaluate: bool = False,
    build: networks.Build = networks.build_from_zoo,
) -> CompressedCheckpoint:
    """Compress the experts of a trained network and write the network to a new checkpoint.

    The routing is measured, and repaired, on training images without augmentation. The new checkpoint is for use;
    training cannot resume from it.

    Args:
        path: A checkpoint of `train`, of `make_checkpoint_static` or of this function.
        out: File to write; never the checkpoint itself, whose experts would be lost.
        experts: As in `condconv.convert.compress_experts_`, as are the other arguments without a description here.
        data: Images: the training images of a directory that has them apart, else all that are there, with classes or
            without; None for the digits, if the network was trained on them.
        grouped: See `experts`.
        layers: See `experts`.
        skip: See `experts`.
        max_error: See `experts`.
        repair_epochs: See `experts`.
        repair_lr: See `experts`.
        data_dir: Where the files of a named dataset are.
        reading: How images are read; None for all of them, on the GPU if there is one.
        force: Whether a file of the name `out` is replaced; else it is an error, said before the work begins.
        evaluate: Whether to score the network before and after on validation images of the same data.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, the experts cannot be compressed, or the file cannot be
            written or is there already.
        TrainingError: The network has diverged.
    """
    check_out(Path(out), Path(path), force)
    reading = reading or Reading()
    checkpoint, network = load_trained(path, build=build)

    judge = Judge(path, checkpoint, data, data_dir, reading, evaluate)
    before = judge.score(network)
    report = compress_experts_(
        reading.place(network),
        experts,
        grouped=grouped,
        data=_Batches(judge.images, reading),
        layers=layers,
        skip=skip,
        max_error=max_error,
        repair_epochs=repair_epochs,
        repair_lr=repair_lr,
    )
    stores = {**checkpoint.stores, **report.stores}
    save_remade(out, checkpoint, network.state_dict(), stores=stores)
    return CompressedCheckpoint(report, before, judge.score(network))


class _Batches:
    """Readable images in batches, as often as they are wanted."""

    def __init__(self, images: Images, reading: Reading) -> None:
        self._images, self._reading = images, reading
        self._order = reading.choose(images)

    def __iter__(self) -> Iterator[Tensor]:
        for batch, targets in self._reading.read(self._images, self._order, "images"):
            if bool((readable := targets >= 0).any()):
                yield batch[readable]
