"""Training and scoring a detector, with the settings of `condconv train` that apply."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection.ssd import SSD
from tqdm import tqdm

from condconv.atomic import write_atomic
from condconv.errors import TrainingError, TrainingInterrupted, UsageError
from condconv.experiments.detection.coco import CocoImages, Target
from condconv.experiments.detection.network import create_detector, detector_costs
from condconv.nn import anneal_
from condconv.train import TrainConfig
from condconv.train.launch import create_accelerator, micro_batch, prepare, seed_everything
from condconv.train.loading import EpochSampler, batches
from condconv.train.lock import only_here
from condconv.train.optimization import create_optimizer, create_scheduler
from condconv.weights import load_pretrained

_SIZE = 300
_NOT_FOR_DETECTORS = {
    *("val_data", "data_dir", "in_chans", "normalization", "on_bad_image", "pretrained", "init_skip", "patience"),
    *("label_smoothing", "expert_dropout", "ema_decay", "mixup", "cutmix", "min_crop", "hflip", "color_jitter"),
    *("auto_augment", "random_erasing", "log_with", "sync_bn", "channels_last", "compile"),
}
"""Settings of classifiers that nothing here reads."""


@dataclass(frozen=True)
class DetectionResult:
    """A finished run.

    Attributes:
        scores: COCO's AP on the validation images after each epoch, 0 to 1.
        params: Parameters.
        madds: Multiply-adds for one image.
        images: Training images of an epoch.
    """

    scores: tuple[float, ...]
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
    val: CocoImages
    scores: list[float]


def train_detector(config: TrainConfig, *, progress: bool = True, title: str = "train") -> DetectionResult:
    """Train SSD on a network's features, or go on with the run that `config.out` holds.

    Of the settings, those of the data path, network, optimisation, seed and precision apply, and the others must be
    left as they are; images are 300 pixels wide unless `image_size` says otherwise, and augmented as SSD's authors do.
    `init_from` is a classifier's checkpoint, whose features the detector starts from.

    Args:
        config: The run.
        progress: Whether to show a bar, which only a terminal gets.
        title: Text before the bar.

    Raises:
        UsageError: Settings or data do not fit, or the directory holds a run of other settings.
        TrainingError: The loss is no longer a finite number.
        TrainingInterrupted: Ctrl-C; the finished epochs are saved.
    """
    _check_apply(config)
    with only_here(Path(config.out)):
        run = _set_up(config)
        try:
            for epoch in range(len(run.scores) + 1, config.epochs + 1):
                _train_epoch(run, epoch, f"{title}, epoch {epoch}/{config.epochs}", progress)
                run.scores.append(_score(run))
                _save(run)
        except KeyboardInterrupt:
            done = f"{len(run.scores)} of {config.epochs} epochs are saved in {config.out}"
            raise TrainingInterrupted(done) from None
    params, madds = detector_costs(run.detector.cpu(), config.image_size or _SIZE)
    return DetectionResult(tuple(run.scores), params, madds, len(run.sampler))


def _check_apply(config: TrainConfig) -> None:
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name in _NOT_FOR_DETECTORS and value != each.default:
            raise UsageError(
                f"`{each.name}` must be left as it is ({each.default!r}) for a detector, got {value!r}: only settings "
                "of network, optimisation, seed and precision apply"
            )


def _set_up(config: TrainConfig) -> _Run:
    accelerator = create_accelerator(config)
    micro = micro_batch(config, accelerator)
    root = Path(config.data)
    train, val = CocoImages(root, "train", augment=True), CocoImages(root, "val", augment=False)
    if train.class_names != val.class_names:
        raise UsageError(f"`data` must have the same categories in train and val, got {train.annotations} and others")
    if config.batch_size > len(train):
        raise UsageError(
            f"`batch_size` must be at most the number of images with boxes ({len(train)}), got {config.batch_size}"
        )
    seed_everything(config.seed)
    size = config.image_size or _SIZE
    detector = create_detector(config.model, len(train.class_names), image_size=size, **config.model_options)
    if config.init_from:
        # Layers after the features, which a detector does not have, are of no use to it.
        load_pretrained(detector.backbone.body, config.init_from, skip=("classifier*", "conv_head*", "bn2*"))
    optimizer = create_optimizer(config, detector)
    scheduler = create_scheduler(config, optimizer, len(train) // config.batch_size)
    sampler = EpochSampler(len(train), config.batch_size, config.seed)
    train_loader = DataLoader(train, micro, sampler=sampler, num_workers=config.workers, collate_fn=_collate)
    val_loader = DataLoader(val, micro, num_workers=config.workers, collate_fn=_collate)
    scores = _restore(config, detector, optimizer)
    prepared = prepare(accelerator, detector, optimizer, train_loader, val_loader)
    model, optimizer, *loaders = prepared
    return _Run(
        config, accelerator, detector, model, optimizer, scheduler, sampler, (loaders[0], loaders[1]), val, scores
    )


def _collate(batch: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def _train_epoch(run: _Run, epoch: int, title: str, progress: bool) -> None:
    seed_everything(run.config.seed, epoch, run.accelerator.process_index)
    run.sampler.epoch = epoch
    run.model.train()
    update = (epoch - 1) * (len(run.sampler) // run.config.batch_size)
    show = progress and run.accelerator.is_main_process
    for images, targets in tqdm(
        batches(run.loaders[0]), title, len(run.loaders[0]), unit="batch", disable=None if show else True
    ):
        with run.accelerator.accumulate(run.model):
            loss = sum(run.model(images, targets).values())
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss became {loss.item()} in epoch {epoch}: train with a lower --lr")
            run.accelerator.backward(loss)
            if run.accelerator.sync_gradients and run.config.clip_grad is not None:
                run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_grad)
            run.optimizer.step()
            run.optimizer.zero_grad()
        if run.accelerator.sync_gradients:
            update += 1
            anneal_(run.detector)
            run.scheduler.step_update(update)


@torch.no_grad()
def _score(run: _Run) -> float:
    run.model.eval()
    found: list[tuple[int, Mapping[str, Tensor]]] = []
    for images, targets in batches(run.loaders[1]):
        for target, detection in zip(targets, run.model(images), strict=True):
            found.append((target["image_id"], {name: each.cpu() for name, each in detection.items()}))
    # The loader repeats images to give every process as many; a dictionary holds each once.
    return run.val.mean_average_precision(dict(gather_object(found)))


def _checkpoint_path(config: TrainConfig) -> Path:
    return Path(config.out) / "last.pt"


def _save(run: _Run) -> None:
    if not run.accelerator.is_main_process:
        return
    state = {
        "config": asdict(run.config),
        "scores": run.scores,
        "model": run.detector.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = _checkpoint_path(run.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _restore(config: TrainConfig, detector: SSD, optimizer: Any) -> list[float]:
    """Put detector and optimizer where the last finished epoch left them; returns the scores so far."""
    path = _checkpoint_path(config)
    if not path.exists():
        return []
    state = torch.load(path, map_location="cpu", weights_only=True)
    config.check_same(TrainConfig(**state["config"]))
    detector.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["scores"])
