"""Accuracy of a network on validation images, in training and from a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from condconv.analysis.outputs import outputs
from condconv.counting.tracing import evaluating
from condconv.errors import TrainingError, UsageError, shown_name
from condconv.lab.config import TrainConfig
from condconv.lab.data.image_data import val_transform
from condconv.lab.data.images import IGNORED, Images, in_mode
from condconv.lab.data.loading import batches
from condconv.lab.data.workers import shortages_explained
from condconv.lab.processes import create_accelerator
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint
from condconv.lab.saved.reading import Reading, open_labelled, own_data
from condconv.lab.saved.rebuild import load_trained


@dataclass(frozen=True)
class Evaluation:
    """The scores of a network.

    Attributes:
        images: Number of images that count.
        top1: Fraction whose class is ranked first, 0 to 1.
        top5: Fraction whose class is among the first five; None with five classes or fewer, where it says
            nothing.
        loss: Mean cross entropy, in nats.
        skipped_images: Unreadable images that do not count.
        images_per_second: Over all processes, reading included.
    """

    images: int
    top1: float
    top5: float | None
    loss: float
    skipped_images: int
    images_per_second: float


Batches = Iterator[tuple[Tensor, Tensor]]
"""Images `[B, C, S, S]` and classes `[B]`."""


def evaluate(
    accelerator: Accelerator,
    network: nn.Module,
    loader: Any,
    *,
    progress: bool = False,
    watch: Callable[[Batches], Batches] | None = None,
) -> Evaluation:
    """Score a network on a prepared loader; correct with any number of processes (each image counts once).

    Args:
        accelerator: Gathers the processes' results.
        network: Classifier, `[B, C, S, S]` to `[B, classes]`; put into eval mode and back.
        loader: Loader prepared by `accelerator`.
        progress: Whether to show a bar on a terminal.
        watch: Yields the batches that it is given, and may look at the network while it runs on each.
    """
    rows: list[Tensor] = []
    num_classes = 0
    start = time.perf_counter()
    read = batches(loader) if watch is None else watch(batches(loader))
    bar = tqdm(read, "evaluate", len(loader), disable=None if progress else True)
    with shortages_explained(), evaluating(network), accelerator.autocast():
        for _, targets, output in outputs(network, bar, accelerator.device):
            num_classes = output.shape[1]
            rows.append(accelerator.gather_for_metrics(_score(output.float(), targets)).cpu())
    seconds = time.perf_counter() - start
    scores = torch.cat(rows).double()
    counted = scores[scores[:, 0] > 0]
    if len(counted) == 0:
        raise UsageError("`data` must hold at least one readable validation image, got none: check the files")
    top1, top5, loss = (counted[:, column].mean().item() for column in (1, 2, 3))
    return Evaluation(
        images=len(counted),
        top1=top1,
        top5=top5 if num_classes > 5 else None,
        loss=loss,
        skipped_images=len(scores) - len(counted),
        images_per_second=len(scores) / seconds,
    )


def _score(logits: Tensor, targets: Tensor) -> Tensor:
    """Return one row per image: counts or not, first right, among the first five, loss. `[B, 4]`, float32."""
    counts = targets != IGNORED
    ranked = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]  # [B, 5]
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return torch.stack([counts.float(), ranked[:, 0].float(), ranked.any(1).float(), loss], dim=1)


def image_transform(checkpoint: Checkpoint) -> Callable[[Image.Image], Tensor]:
    """Return the function that prepares an image for the network of a checkpoint, as in evaluation.

    The function takes an image of any mode as PIL opens it, but for floating point pixels, and gives `[C, S, S]`
    float32.

    Args:
        checkpoint: As `load_checkpoint` returned it.
    """
    transform = val_transform(checkpoint.preprocessing)
    mode = "L" if checkpoint.in_chans == 1 else "RGB"
    return lambda image: transform(in_mode(image, mode))


def evaluate_images(network: nn.Module, images: Images, reading: Reading) -> Evaluation:
    """Score a network on images, with as many processes as a launcher has started.

    Args:
        network: As in `evaluate`; moved to the device.
        images: With classes.
        reading: How they are read.
    """
    accelerator = create_accelerator(TrainConfig(data="-", model="-", out="-", device=reading.device))
    order = None if reading.max_images is None else reading.choose(images)
    loader = accelerator.prepare(reading.loader(images, order))
    progress = reading.progress and accelerator.is_main_process
    return evaluate(accelerator, network.to(accelerator.device), loader, progress=progress)


def evaluate_checkpoint(
    path: str | Path,
    data: str | None = None,
    *,
    data_dir: str | None = None,
    reading: Reading | None = None,
    build: networks.Build = networks.build_from_zoo,
) -> Evaluation:
    """Score a checkpoint of `train` on validation images, at the size it was trained for.

    Args:
        path: A `best.safetensors` or `last.safetensors`.
        data: A directory with `val/` or the class folders themselves, a tar file, or a named dataset; see
            `TrainConfig`. `None` for the digits, if the network was trained on them. Where it is the run's own, its
            `data_options` are used too.
        data_dir: Where the files of `torch/NAME` are, or the cache of `hfds/NAME`.
        reading: How images are read; None for all of them, on the GPU if there is one.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, or their classes differ.
        TrainingError: The network has diverged.
    """
    reading = reading or Reading()
    checkpoint, network = load_trained(path, build=build)
    images = open_labelled(checkpoint, data or own_data(checkpoint, "val"), data_dir=data_dir, skip=reading.skip)
    scores = evaluate_images(network, images, reading)
    check_finite_loss(scores, path)
    return scores


def check_finite_loss(scores: Evaluation, path: str | Path) -> None:
    """Check that the loss of a checkpoint's network is a finite number.

    Raises:
        TrainingError: It is not.
    """
    if not math.isfinite(scores.loss):
        raise TrainingError(
            f"the network of {shown_name(path)} has diverged, its loss is {scores.loss}: take a checkpoint of an "
            "earlier epoch, or train again with a lower --lr"
        )
