"""Training and scoring a detector, with the settings of `condconv train` that apply."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils.distributed import distribute_bn
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection.ssd import SSD
from tqdm import tqdm

from condconv.errors import TrainingError, TrainingInterrupted, UsageError, shown, shown_name
from condconv.lab.config import TrainConfig
from condconv.lab.data.loading import EpochSampler, batches
from condconv.lab.experiments.detection import saved
from condconv.lab.experiments.detection.coco import CocoImages, Target
from condconv.lab.experiments.detection.network import create_detector, detector_costs
from condconv.lab.experiments.detection.saved import DetectionMetrics
from condconv.lab.processes import create_accelerator, micro_batch, only_here, prepare, seed_everything
from condconv.lab.saved.network import NOT_BUILT, cannot_be_built
from condconv.lab.train.optimization import create_optimizer, create_scheduler
from condconv.lab.train.previous import check_files
from condconv.models import create_model
from condconv.nn import anneal_
from condconv.weights import load_pretrained

_SIZE = 300
_NOT_FOR_DETECTORS = {
    *(
        "val_data",
        "data_dir",
        "data_options",
        "cache_images",
        "in_chans",
        "normalization",
        "on_bad_image",
        "pretrained",
        "init_skip",
        "patience",
    ),
    *("label_smoothing", "expert_dropout", "ema_decay", "mixup", "cutmix", "min_crop", "hflip", "color_jitter"),
    *("auto_augment", "random_erasing", "log_with", "sync_bn", "channels_last", "compile"),
}
"""Settings of classifiers that nothing here reads."""


@dataclass(frozen=True)
class DetectionResult:
    """A finished run.

    Attributes:
        metrics: One entry per epoch, in order.
        params: Parameters.
        madds: Multiply-adds for one image.
        images: Training images of an epoch.
    """

    metrics: tuple[DetectionMetrics, ...]
    params: int
    madds: int
    images: int


@dataclass
class _Run:
    config: TrainConfig
    accelerator: Accelerator
    detector: SSD
    model: Any
    optimizer: Any
    scheduler: Any
    sampler: EpochSampler
    loaders: tuple[Any, Any]
    train: CocoImages
    val: CocoImages
    metrics: tuple[DetectionMetrics, ...]


def train_detector(
    config: TrainConfig, *, progress: bool = True, title: str = "train", wait: bool = False
) -> DetectionResult:
    """Train SSD on a network's features, or resume the run that `config.out` holds.

    The settings of data path, network, optimisation, seed and precision apply; the others must be left at their
    defaults. Images are 300 pixels wide unless `image_size` says otherwise, and augmented as SSD's authors do.
    `init_from` is a classifier's checkpoint, whose features the detector starts from.

    Args:
        config: The run.
        progress: Whether to show a bar, which only a terminal gets.
        title: Text before the bar.
        wait: As in `condconv.lab.train.train`.

    Raises:
        UsageError: Settings or data do not fit, or the directory holds a run of other settings.
        TrainingError: The loss is no longer a finite number.
        TrainingInterrupted: Ctrl-C; the finished epochs are saved.
    """
    _check_apply(config)
    with only_here(Path(config.out), wait=wait):
        check_files(Path(config.out))
        run = _set_up(config)
        try:
            for epoch in range(len(run.metrics) + 1, config.epochs + 1):
                started = time.perf_counter()
                loss = _train_epoch(run, epoch, f"{title}, epoch {epoch}/{config.epochs}", progress)
                if run.accelerator.num_processes > 1:  # as in the training of classifiers
                    distribute_bn(run.detector, run.accelerator.num_processes, reduce=True)
                score, lr = _score(run), run.optimizer.param_groups[0]["lr"]
                _save(run, DetectionMetrics(epoch, lr, loss, score, time.perf_counter() - started))
        except KeyboardInterrupt:
            raise TrainingInterrupted(_what_is_saved(run)) from None
    params, madds = detector_costs(run.detector.cpu(), config.image_size or _SIZE)
    return DetectionResult(run.metrics, params, madds, len(run.sampler))


def _what_is_saved(run: _Run) -> str:
    return f"{len(run.metrics)} of {run.config.epochs} epochs are saved in {run.config.out}"


def _check_apply(config: TrainConfig) -> None:
    for each in fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name in _NOT_FOR_DETECTORS and value != default:
            raise UsageError(
                f"`{each.name}` must be left as it is ({default!r}) for a detector, got {shown(value)}: only settings "
                "of network, optimisation, seed and precision apply"
            )


def _set_up(config: TrainConfig) -> _Run:
    accelerator = create_accelerator(config)
    if accelerator.is_fsdp2:
        raise UsageError("`accelerate launch` must start plain processes for a detector, got FSDP: drop --use_fsdp")
    micro = micro_batch(config, accelerator)
    root = Path(config.data)
    train, val = CocoImages(root, "train", augment=True), CocoImages(root, "val", augment=False)
    if train.class_names != val.class_names:
        raise UsageError(
            f"`data` must have the same categories in train and val, got {shown_name(train.annotations)} and others: "
            "give both files the same ones"
        )
    if config.batch_size > len(train):
        raise UsageError(
            f"`batch_size` must be at most the number of images with boxes ({len(train)}), got {config.batch_size}: "
            "lower it"
        )
    seed_everything(config.seed)
    size = config.image_size or _SIZE
    try:
        detector = create_detector(config.model, len(train.class_names), image_size=size, **config.model_options)
    except NOT_BUILT as error:
        options = ", ".join(config.model_options) or "these categories"
        raise cannot_be_built(config, options, error) from error
    if config.init_from:
        _start_from(config.init_from, config, detector.backbone.body)
    optimizer = create_optimizer(config, detector)
    scheduler = create_scheduler(config, optimizer, len(train) // config.batch_size)
    sampler = EpochSampler(len(train), config.batch_size, config.seed)
    train_loader = DataLoader(train, micro, sampler=sampler, num_workers=config.workers, collate_fn=_collate)
    val_loader = DataLoader(val, micro, num_workers=config.workers, collate_fn=_collate)
    metrics = saved.restore_(config, _data(train), detector, optimizer, accelerator.scaler)
    prepared = prepare(accelerator, detector, optimizer, train_loader, val_loader)
    model, optimizer, *loaders = prepared
    parts = (config, accelerator, detector, model, optimizer, scheduler, sampler)
    return _Run(*parts, (loaders[0], loaders[1]), train, val, metrics)


def _start_from(path: str, config: TrainConfig, features: Any) -> None:
    """Copy a classifier's features into a detector's, in place, without the layers that follow them."""
    classifier = create_model(config.model, **config.model_options)
    load_pretrained(classifier, path, skip="classifier*")
    own = features.state_dict()
    features.load_state_dict({name: value for name, value in classifier.state_dict().items() if name in own})


def _collate(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def _train_epoch(run: _Run, epoch: int, title: str, progress: bool) -> float:
    """Train one epoch and return the mean loss."""
    seed_everything(run.config.seed, epoch, run.accelerator.process_index)
    run.sampler.epoch = epoch
    run.model.train()
    update = (epoch - 1) * (len(run.sampler) // run.config.batch_size)
    show = progress and run.accelerator.is_main_process
    losses: list[Tensor] = []
    for images, targets in tqdm(
        batches(run.loaders[0]), title, len(run.loaders[0]), unit="batch", disable=None if show else True
    ):
        with run.accelerator.accumulate(run.model):
            loss = sum(run.model(images, targets).values())
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss.item()} in epoch {epoch}; {_what_is_saved(run)}: train in another "
                    "--out with a lower --lr"
                )
            losses.append(loss.detach())
            run.accelerator.backward(loss)
            if run.accelerator.sync_gradients and run.config.clip_grad is not None:
                run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_grad)
            run.optimizer.step()
            run.optimizer.zero_grad()
        if run.accelerator.sync_gradients:
            update += 1
            anneal_(run.detector)
            run.scheduler.step_update(update)
    mean: Tensor = run.accelerator.reduce(torch.stack(losses).mean(), "mean")
    return mean.item()


@torch.no_grad()
def _score(run: _Run) -> float:
    run.model.eval()
    found: list[tuple[int, Mapping[str, Tensor]]] = []
    for images, targets in batches(run.loaders[1]):
        for target, detection in zip(targets, run.model(images), strict=True):
            found.append((target["image_id"], {name: each.cpu() for name, each in detection.items()}))
    # The loader repeats images to give every process as many; a dictionary holds each once.
    return run.val.mean_average_precision(dict(gather_object(found)))


def _save(run: _Run, epoch: DetectionMetrics) -> None:
    metrics = (*run.metrics, epoch)
    if run.accelerator.is_main_process:
        saved.save(run.config, _data(run.train), metrics, run.detector, run.optimizer, run.accelerator.scaler)
    run.metrics = metrics


def _data(train: CocoImages) -> saved.DetectionData:
    return saved.DetectionData(train.class_names, len(train))
