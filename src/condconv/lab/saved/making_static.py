"""Checkpoints with fewer conditional layers: those that hardly depend on the image become ordinary layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condconv.convert import make_static_
from condconv.counting.parameters import count_parameters
from condconv.lab.data.workers import shortages_explained
from condconv.lab.saved import network as networks
from condconv.lab.saved.evaluate import Evaluation
from condconv.lab.saved.inspection import record
from condconv.lab.saved.reading import Reading
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.saved.remaking import Judge, check_out, save_remade
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

    judge = Judge(path, checkpoint, data, data_dir, reading, evaluate)
    before = judge.score(network)
    report = record(reading.place(network), reading.read(judge.images, reading.choose(judge.images), "routing"), None)
    params_before = count_parameters(network.parameters())
    make_static_(network, {name: report.routing(name).mean_vector for name in chosen})
    static = (*checkpoint.static_layers, *chosen)
    save_remade(out, checkpoint, network.state_dict(), static_layers=static)
    return StaticCheckpoint(
        layers=chosen,
        conditional_left=len(conditional_layers(network)),
        images=int(report.routings[0].examples),
        params_before=params_before,
        params_after=count_parameters(network.parameters()),
        before=before,
        after=judge.score(network),
    )
