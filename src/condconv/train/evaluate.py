"""Accuracy of a network on validation images, in training and from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from condconv.convert import freeze_layers_
from condconv.errors import UsageError
from condconv.tracing import evaluating
from condconv.train import network as networks
from condconv.train.checkpoint import Checkpoint, load_checkpoint
from condconv.train.data import open_trained, val_transform
from condconv.train.images import IGNORED, Images, in_mode
from condconv.train.launch import create_accelerator
from condconv.train.loading import batches, create_loader
from condconv.train.rules import one_of, whole
from condconv.train.workers import shortages_explained


@dataclass(frozen=True)
class Evaluation:
    """What a network scores.

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
    """Score a network on a prepared loader; right with any number of processes (each image counts once).

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
    """Return a row an image: counts or not, first right, among the first five, loss. `[B, 4]`, float32."""
    counts = targets != IGNORED
    ranked = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]  # [B, 5]
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return torch.stack([counts.float(), ranked[:, 0].float(), ranked.any(1).float(), loss], dim=1)


def load_network(
    checkpoint: Checkpoint, path: str | Path, *, build: networks.Build = networks.build_from_zoo
) -> nn.Module:
    """Rebuild the trained network of a checkpoint, on the CPU, in eval mode; averaged weights if there are some.

    Args:
        checkpoint: As `load_checkpoint` returned it.
        path: Its file, for messages.
        build: Builds the network from the run's settings; for networks of your own.

    Raises:
        UsageError: The network cannot be built, or the weights are not its own.
    """
    options = networks.default_options(checkpoint.config, checkpoint.image_size)
    size: dict[str, Any] = {"image_size": checkpoint.image_size, "in_chans": checkpoint.in_chans}
    config = replace(checkpoint.config, model_options=options, pretrained=False, **size)
    network = build(config, len(checkpoint.class_names), checkpoint.in_chans)
    freeze_layers_(network, dict.fromkeys(checkpoint.static_layers))
    networks.load_weights_(network, checkpoint.weights, path)
    return network.eval()


def image_transform(checkpoint: Checkpoint) -> Callable[[Image.Image], Tensor]:
    """Return what makes an image what the network of a checkpoint takes, as evaluation does.

    The function takes an image of any mode as PIL opens it, but for floating point pixels, and gives `[C, S, S]`
    float32.

    Args:
        checkpoint: As `load_checkpoint` returned it.
    """
    transform = val_transform(checkpoint.image_size, checkpoint.in_chans, checkpoint.normalization)
    mode = "L" if checkpoint.in_chans == 1 else "RGB"
    return lambda image: transform(in_mode(image, mode))


def open_images_of(
    checkpoint: Checkpoint, data: str, *, split: str = "val", data_dir: str | None, skip: bool
) -> Images:
    """Open images as the network of a checkpoint takes them.

    Args:
        checkpoint: As `load_checkpoint` returned it.
        data: As in `evaluate_checkpoint`; for the checkpoint's own data the options of its reader are used too.
        split: `"val"` or `"train"`.
        data_dir: Where the files of a named set are; `None` for where the checkpoint's own were.
        skip: Whether unreadable images are left out and counted.

    Raises:
        UsageError: The data cannot be used, or has other classes.
    """
    config = checkpoint.config
    options = config.reader_options(data) if data in (config.data, config.val_data) else {}
    return open_trained(
        data,
        checkpoint.class_names,
        split=split,
        size=checkpoint.image_size,
        in_chans=checkpoint.in_chans,
        skip=skip,
        normalization=checkpoint.normalization,
        **options | ({} if data_dir is None else {"data_dir": data_dir}),
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
            `TrainConfig`. `None` for the run's own; where it is that, so are `data_dir` and `data_options`.
        data_dir: Where the files of `torch/NAME` are, or the cache of `hfds/NAME`.
        batch_size: Images per forward pass and process.
        workers: Processes that read images.
        on_bad_image: `"error"` or `"skip"`.
        device: `"auto"` or `"cpu"`.
        progress: Whether to show a bar on a terminal.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, or their classes differ.
    """
    whole(1).check("batch_size", batch_size)
    whole(0).check("workers", workers)
    one_of("error", "skip").check("on_bad_image", on_bad_image)
    checkpoint = load_checkpoint(path)
    data = data or checkpoint.config.data_of("val")
    images = open_images_of(checkpoint, data, data_dir=data_dir, skip=on_bad_image == "skip")
    accelerator = create_accelerator(
        replace(checkpoint.config, device=device, mixed_precision="no", log_with=None, sync_bn=False, compile=False)
    )
    network = load_network(checkpoint, path, build=build).to(accelerator.device)
    loader = accelerator.prepare(create_loader(images, batch_size, workers=workers))
    return evaluate(accelerator, network, loader, progress=progress and accelerator.is_main_process)
