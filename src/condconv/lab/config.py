"""The settings of a training run: one frozen record, checked when it is made, kept as JSON in the run's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from typing import Any

from condconv.errors import UsageError, few, shown, shown_name
from condconv.lab.options import DATA_OPTIONS, MODEL_OPTIONS
from condconv.lab.rules import BOOL, OPTIONS, PATH, TEXT, Rule, number, one_of, or_none, whole


def _option(group: str, default: Any, help_text: str, rule: Rule) -> Any:
    return field(default=default, metadata={"help": help_text, "group": group, "rule": rule})


def _options(group: str, help_text: str, rule: Rule = OPTIONS) -> Any:
    return field(default_factory=dict, metadata={"help": help_text, "group": group, "rule": rule})


# The groups are the headings under which the reference and the command line show their fields, with the help text.
DATA, NETWORK, UPDATES = "data", "network", "optimisation"
_data, _network, _updates = (partial(_option, each) for each in (DATA, NETWORK, UPDATES))
_regularisation, _augmentation, _run = (partial(_option, each) for each in ("regularisation", "augmentation", "run"))

_HOW = (
    *("out", "log_with", "data_dir", "workers", "cache_images", "on_bad_image", "patience"),
    *("device", "grad_accumulation", "sync_bn", "channels_last", "compile"),
)
"""Settings that may change when a run is resumed."""

_SCALE = number(1e-9, 1_000_000_000)


EMBEDDED = ("digits", "digits-conditions")
"""Images that need no download and no file, by name."""


def is_named(data: str) -> bool:
    """Return whether `data` names a dataset, even if there is a folder of the same name."""
    return data in EMBEDDED or data.partition("/")[0] in ("torch", "hfds", "wds")


def takes_options(data: str) -> bool:
    """Return whether `data_dir` and `data_options` go with a dataset."""
    return data.partition("/")[0] in ("torch", "hfds")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    The batch size is that of one optimizer update over all processes: the recipe does not change with the
    number of processes or of accumulation steps. `None` means "chosen from the data" unless a field says
    otherwise. `condconv train --help` describes the fields in the same groups.

    Raises:
        UsageError: A value breaks the rule of its field.
    """

    # Data
    data: str = _data(
        MISSING,
        "directory with train/ and val/ (one folder per class) or with train.tar and val.tar; or 'digits', "
        "'digits-conditions', 'torch/NAME', 'hfds/NAME', 'wds/DIRECTORY'",
        PATH,
    )
    val_data: str | None = _data(
        None, "validation images, if they are elsewhere; DATA then has the training images", or_none(PATH)
    )
    data_dir: str | None = _data(
        None, "where the files of torch/NAME are (or go), or the cache of hfds/NAME", or_none(PATH)
    )
    data_options: Mapping[str, Any] = _options(
        DATA, "option of a named dataset's reader, e.g. input_key=img", DATA_OPTIONS
    )
    image_size: int | None = _data(
        None,
        "side of the square input in pixels (default: 224, digits 8, digits-conditions 16)",
        or_none(whole(1, 2_048)),  # the most that a checkpoint takes
    )
    in_chans: int | None = _data(None, "image channels, 1 or 3 (default: 3, the digits 1)", or_none(one_of(1, 3)))
    normalization: str | None = _data(
        None,
        "normalization of the pixels (default: that of the pretrained weights, or imagenet)",
        or_none(one_of("imagenet", "inception")),
    )
    on_bad_image: str = _data("error", "what to do with an unreadable image", one_of("error", "skip"))
    workers: int = _data(0, "processes that read images, per training process", whole(0, 1024))
    cache_images: float = _data(
        0.0,
        "GiB of memory, per training process, in which to keep all images decoded; an error if they need more; 0 "
        "reads each image again in each epoch",
        number(0),
    )

    # Network
    model: str = _network(MISSING, "name of a network, see 'condconv models'", TEXT)
    model_options: Mapping[str, Any] = _options(
        NETWORK, "option of the network, e.g. output_stride=8, drop_rate=0.2", MODEL_OPTIONS
    )
    method: str | None = _network(
        None,
        "method that experts and routing are made by: deltas or shared (ours; 'deltas(scale=0.1)' to fine-tune), "
        "condconv, dyconv, odconv, dcd, weightnet or se (with the number of kernels in the model's name, such as "
        "mobilenet_v2_cc_100_1e)",
        or_none(TEXT),
    )
    pretrained: bool = _network(False, "start from published ImageNet weights", BOOL)
    init_from: str | None = _network(
        None, "start from the weights in a file, of the same network or of its static twin", or_none(PATH)
    )
    init_skip: str | None = _network(
        None, "names that are not loaded from the file, e.g. 'classifier*' for other classes", or_none(TEXT)
    )

    # Optimisation
    epochs: int = _updates(30, "passes over the training images", whole(1))
    # One image per update would leave batch normalisation nothing to average on small maps.
    batch_size: int = _updates(64, "images per optimizer update, over all processes", whole(2))
    grad_accumulation: int = _updates(1, "forward passes per update", whole(1))
    optimizer: str = _updates("adamw", "optimizer, by its timm name", TEXT)
    optimizer_options: Mapping[str, Any] = _options(UPDATES, "argument of the optimizer, e.g. momentum=0.9")
    lr: float = _updates(1e-3, "peak learning rate", number(0, open_below=True))
    router_lr_scale: float = _updates(1.0, "learning-rate multiplier for routing functions", _SCALE)
    expert_lr_scale: float = _updates(
        1.0,
        "learning-rate multiplier for experts (with softmax routing and sgd: at least the number of experts)",
        _SCALE,
    )
    scheduler: str = _updates(
        "cosine",
        "learning rate schedule, by its timm name",
        one_of("cosine", "tanh", "step", "multistep", "poly", "constant"),
    )
    scheduler_options: Mapping[str, Any] = _options(UPDATES, "argument of timm's schedule, e.g. decay_epochs=2.4")
    warmup_epochs: int | None = _updates(
        None, "epochs of linear warm-up (default: 1; 0 if there is one epoch only)", or_none(whole(0))
    )
    clip_grad: float | None = _updates(
        None, "largest gradient norm (default: no clipping)", or_none(number(0, open_below=True))
    )
    patience: int | None = _updates(
        None, "stop after this many epochs without a better accuracy (default: never)", or_none(whole(1))
    )
    elastic: bool = _updates(
        False,
        "train members of fewer experts or ranks too, for 'condconv budget'; takes about four times as long",
        BOOL,
    )

    # Regularisation
    weight_decay: float | None = _regularisation(
        None,
        "weight decay, not of biases and norms (default: 0.05, or 5e-4 with sgd, momentum, nesterov, rmsprop and "
        "rmsproptf, which add it to the gradient)",
        or_none(number(0)),
    )
    router_decay: bool = _regularisation(True, "decay the weights of routing functions too", BOOL)
    norm_decay: bool = _regularisation(False, "decay biases and norms too", BOOL)
    label_smoothing: float = _regularisation(0.1, "probability mass spread over the wrong classes", number(0, 0.9))
    expert_dropout: float = _regularisation(0.0, "probability of leaving an expert out, for each image", number(0, 0.9))
    ema_decay: float | None = _regularisation(
        None,
        "average the weights over updates with this decay, and evaluate the average (default: no average)",
        or_none(number(0, 0.999999)),
    )
    mixup: float = _regularisation(0.0, "alpha of mixup, which blends pairs of images; 0 turns it off", number(0))
    cutmix: float = _regularisation(
        0.0, "alpha of cutmix, which pastes a part of another image; 0 turns it off", number(0)
    )

    # Augmentation
    min_crop: float | None = _augmentation(
        None,
        "smallest random crop, as a fraction of the area (default: 0.25, the digits 1)",
        or_none(number(0, 1, open_below=True)),
    )
    hflip: float | None = _augmentation(
        None, "probability of a horizontal flip (default: 0.5, the digits 0)", or_none(number(0, 1))
    )
    color_jitter: float = _augmentation(0.0, "strength of the colour jitter", number(0))
    auto_augment: str | None = _augmentation(
        None, "timm's augmentation policy, e.g. rand-m9-mstd0.5 (default: none)", or_none(TEXT)
    )
    random_erasing: float = _augmentation(0.0, "probability of erasing a rectangle", number(0, 1))

    # Run
    out: str = _run(MISSING, "directory for checkpoints and metrics; a run in it is resumed", PATH)
    log_with: str | None = _run(
        None, "also log the metrics to this tracker (default: files only)", or_none(one_of("tensorboard", "wandb"))
    )
    seed: int = _run(0, "random seed of initial weights, image order and augmentation", whole(0, 2**63 - 1))
    mixed_precision: str = _run("no", "arithmetic of the forward pass", one_of("no", "bf16", "fp16"))
    sync_bn: bool = _run(False, "share batch statistics between GPUs", BOOL)
    channels_last: bool = _run(False, "keep images and kernels in channels-last layout", BOOL)
    compile: bool = _run(False, "compile the network with torch.compile", BOOL)
    device: str = _run("auto", "where to train; auto takes a GPU if there is one", one_of("auto", "cpu"))

    def __post_init__(self) -> None:
        for each in fields(self):
            each.metadata["rule"].check(each.name, getattr(self, each.name))
        for name in ("data", "val_data"):  # the same folder, whether or not a shell has put a slash behind it
            path = getattr(self, name)
            if path is not None and path.rstrip("/") not in ("", *EMBEDDED):  # digits/ is a folder
                object.__setattr__(self, name, path.rstrip("/"))
        self._check_together()

    def _check_together(self) -> None:
        if self.batch_size % self.grad_accumulation:
            raise UsageError(
                f"`batch_size` must be a multiple of `grad_accumulation` ({self.grad_accumulation}), got "
                f"{self.batch_size}: it counts the images of a whole update; take "
                f"{max(1, self.batch_size // self.grad_accumulation) * self.grad_accumulation}"
            )
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise UsageError(
                f"`warmup_epochs` must be below `epochs` ({self.epochs}), got {self.warmup_epochs}: "
                "lower it, or train longer"
            )
        if self.cache_images and self.workers:
            raise UsageError(
                f"`workers` must be 0 with `cache_images`, got {self.workers}: the images are in the memory of the "
                "training process"
            )
        if self.pretrained and self.init_from:
            raise UsageError(
                f"`init_from` must be None with `pretrained`, got {shown(self.init_from)}: choose one of the two"
            )
        if self.elastic and self.compile:
            raise UsageError(
                "`compile` must be False with `elastic`, got True: each member would be compiled, leave one of them out"
            )
        if self.init_skip and not self.init_from:
            raise UsageError(
                f"`init_skip` must be None without `init_from`, got {shown(self.init_skip)}: give --init-from too"
            )

    def data_of(self, split: str) -> str:
        """Return where the images of `"train"` or `"val"` are."""
        return self.data if split == "train" else self.val_data or self.data

    def reader_options(self, data: str) -> dict[str, Any]:
        """Return `data_dir` and `data_options` if they are for this one of the run's datasets.

        If only one of the two takes them, they are for that one. If neither does, the reader raises the error.
        """
        mine = takes_options(data) or not any(map(takes_options, (self.data, self.data_of("val"))))
        return {"data_dir": self.data_dir, "options": self.data_options} if mine else {"data_dir": None, "options": {}}

    def to_json(self) -> str:
        """Return the record as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def check_same(self, saved: TrainConfig) -> None:
        """Check that these settings are of the run that `out` holds.

        Settings that decide only where and how it is computed may differ, so that a run resumes with another number of
        processes, less memory or a newly broken image. The result is the same bit for bit only if they do not differ.

        Args:
            saved: The settings of that run.

        Raises:
            UsageError: They differ; the message names each such setting, with both values.
        """
        named = [each.name for each in fields(self) if each.name not in _HOW]
        pairs = [(name, _plain(getattr(self, name)), _plain(getattr(saved, name))) for name in named]
        differences = [f"{name}: {shown(ours)}, not {shown(theirs)}" for name, ours, theirs in pairs if ours != theirs]
        if differences:
            raise UsageError(
                f"`out` must be a new directory or one with a run of the same settings, got {shown_name(self.out)}, "
                f"which differs in {few(differences, between='; ')}: give another --out, or the settings of that run"
            )


def _plain(value: Any) -> Any:
    """Return a value as JSON reads it back: a tuple becomes a list."""
    return json.loads(json.dumps(value)) if isinstance(value, Mapping) else value
