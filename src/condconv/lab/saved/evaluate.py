"""Accuracy of a network on validation images, in training and from a checkpoint."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from condconv.counting.tracing import evaluating
from condconv.errors import TrainingError, UsageError, shown, shown_name
from condconv.lab.config import TrainConfig, is_named
from condconv.lab.data.image_data import open_trained, val_transform
from condconv.lab.data.images import IGNORED, Images, in_mode
from condconv.lab.data.loading import batches, create_loader
from condconv.lab.data.workers import shortages_explained
from condconv.lab.processes import create_accelerator
from condconv.lab.rules import one_of, whole
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint, describe_checkpoint
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


def evaluate(accelerator: Accelerator, network: nn.Module, loader: Any, *, progress: bool = False) -> Evaluation:
    """Score a network on a prepared loader; correct with any number of processes (each image counts once).

    Args:
        accelerator: Gathers the processes' results.
        network: Classifier, `[B, C, S, S]` to `[B, classes]`; put into eval mode and back.
        loader: Loader prepared by `accelerator`.
        progress: Whether to show a bar on a terminal.
    """
    rows: list[Tensor] = []
    num_classes = 0
    start = time.perf_counter()
    # Not inference mode: FSDP keeps what it gathers here for training, which may not use tensors of that mode.
    with shortages_explained(), evaluating(network), torch.no_grad(), accelerator.autocast():
        for images, targets in tqdm(batches(loader), "evaluate", len(loader), disable=None if progress else True):
            logits = network(images).float()
            num_classes = logits.shape[1]
            rows.append(accelerator.gather_for_metrics(_score(logits, targets)).cpu())
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


def own_data(path: str | Path, split: str) -> str:
    """Return where the images of a checkpoint's run were, if a file may decide to open them.

    That is a directory, a tar file, or the digits, which are embedded. A named dataset may be fetched, or opened by
    code of its own: whoever runs a command has to name it.

    Raises:
        UsageError: It is a named dataset, or the checkpoint cannot be used.
    """
    data = describe_checkpoint(path).config.data_of(split)
    if data == "digits" or not is_named(data):
        return data
    typed = data if re.fullmatch(r"[\w./-]{1,100}", data, re.ASCII) else f"{data.partition('/')[0]}/NAME"
    more = " --data-dir DIRECTORY" if typed.startswith("torch/") else ""
    raise UsageError(
        f"`data` must be given for a network that was trained on {shown(data)}, got None: a file cannot decide to "
        f"open a named dataset; add --data {typed}{more}"
    )


def open_images_of(
    checkpoint: Checkpoint, data: str, *, split: str = "val", data_dir: str | None, skip: bool
) -> Images:
    """Open images as the network of a checkpoint takes them.

    Args:
        checkpoint: As `load_checkpoint` returned it.
        data: As in `evaluate_checkpoint`; for the checkpoint's own data the options of its reader are used too.
        split: `"val"` or `"train"`.
        data_dir: Where the files of a named set are; what the checkpoint says of that is not used.
        skip: Whether unreadable images are left out and counted.

    Raises:
        UsageError: The data cannot be used, or has other classes.
    """
    config = checkpoint.config
    # The rule of these options lets through what is data only, so it does not matter who wrote them.
    own = data in (config.data, config.val_data)
    options = config.reader_options(data)["options"] if own else {}
    return open_trained(
        data,
        checkpoint.class_names,
        checkpoint.preprocessing,
        split=split,
        skip=skip,
        data_dir=data_dir,
        options=options,
    )


def evaluate_checkpoint(
    path: str | Path,
    data: str | None = None,
    *,
    data_dir: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_bad_image: str = "error",
    device: str = "auto",
    progress: bool = True,
    build: networks.Build = networks.build_from_zoo,
) -> Evaluation:
    """Score a checkpoint of `train` on validation images, at the size it was trained for.

    Args:
        path: A `best.safetensors` or `last.safetensors`.
        data: A directory with `val/` or the class folders themselves, a tar file, or a named dataset; see
            `TrainConfig`. `None` for the run's own, unless that is a named dataset. Where it is the run's own, its
            `data_options` are used too.
        data_dir: Where the files of `torch/NAME` are, or the cache of `hfds/NAME`.
        batch_size: Images per forward pass and process.
        workers: Processes that read images.
        on_bad_image: `"error"` or `"skip"`.
        device: `"auto"` or `"cpu"`.
        progress: Whether to show a bar on a terminal.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, or their classes differ.
        TrainingError: The network has diverged.
    """
    whole(1).check("batch_size", batch_size)
    whole(0).check("workers", workers)
    one_of("error", "skip").check("on_bad_image", on_bad_image)
    data = data or own_data(path, "val")
    checkpoint, network = load_trained(path, build=build)
    images = open_images_of(checkpoint, data, data_dir=data_dir, skip=on_bad_image == "skip")
    accelerator = create_accelerator(TrainConfig(data=data, model=checkpoint.config.model, out="-", device=device))
    network = network.to(accelerator.device)
    loader = accelerator.prepare(create_loader(images, batch_size, workers=workers))
    scores = evaluate(accelerator, network, loader, progress=progress and accelerator.is_main_process)
    if not math.isfinite(scores.loss):
        raise TrainingError(
            f"the network of {shown_name(path)} has diverged, its loss is {scores.loss}: take a checkpoint of an "
            "earlier epoch, or train again with a lower --lr"
        )
    return scores
