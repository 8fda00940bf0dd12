"""One run of an experiment: an arm trained from one seed, measured, and kept as a record."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condconv.counting import count
from condconv.errors import UsageError, first_line, shown, shown_name
from condconv.files.atomic import write_own
from condconv.files.paths import check_own, check_own_files, make_directory, read_text
from condconv.files.schema import number, one_of, read_record, whole
from condconv.lab.config import TrainConfig
from condconv.lab.data.image_data import open_data
from condconv.lab.experiments.branches import build
from condconv.lab.experiments.design import Arm, Experiment
from condconv.lab.saved.evaluate import evaluate_images
from condconv.lab.saved.reading import Reading
from condconv.lab.saved.rebuild import load_trained
from condconv.lab.train.loop import train

RESULTS = ("table.md", "table.csv", "records.json", "plot.png")
"""Files of an experiment, written next to the records of its runs when these are done."""
_TRAINED = "trained"  # the directory of all trainings
_OF_EXPERTS = ("expert_dropout", "expert_lr_scale", "router_lr_scale", "router_decay")
_SEEDS_APART = 1000  # between the members of an arm, so that no member is another seed's


@dataclass(frozen=True)
class RunRecord:
    """The record of a finished run.

    Attributes:
        experiment: Name of the experiment.
        label: Of the arm.
        seed: Of the run; decides weights, order and augmentation.
        settings: The arm's settings, as text.
        params: Parameters of all members.
        madds: Multiply-adds for one image, all members.
        score: Accuracy (or COCO's AP) on the validation images after the last epoch, 0 to 1; of the averaged
            probabilities if there are several members.
        member_scores: Score of each member.
        curve: Score after each epoch, one list per member.
        loss_curve: Mean training loss of each epoch, in the same form; it varies less from seed to seed than the score.
        images_trained: Training images seen, all members and epochs.
        seconds: Wall time of all epochs of all members, scoring included, however often they were interrupted.
        machine: What it ran on, with versions.
    """

    experiment: str
    label: str
    seed: int
    settings: str
    params: int
    madds: int
    score: float
    member_scores: tuple[float, ...]
    curve: tuple[tuple[float, ...], ...]
    loss_curve: tuple[tuple[float, ...], ...]
    images_trained: int
    seconds: float
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """An arm and a seed.

    Attributes:
        experiment: The experiment.
        arm: One of its arms.
        seed: From 0.
        settings: Settings that all arms share; its model, out and seed are not used.
        out: Directory of all experiments.
    """

    experiment: Experiment
    arm: Arm
    seed: int
    settings: TrainConfig
    out: Path

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return f"{self.arm.label}/{self.seed}"

    @property
    def path(self) -> Path:
        """File of the record; its name includes the settings, so that records of other settings are kept."""
        words = "".join(each if each.isalnum() else "-" for each in self.arm.label)
        digest = hashlib.sha256(self.fingerprint().encode()).hexdigest()[:10]
        return self.out / self.experiment.name / f"{words}-seed{self.seed}-{digest}.json"

    @property
    def log(self) -> Path:
        """File that a process of this run writes to."""
        return self.path.with_suffix(".log")

    def configs(self) -> tuple[TrainConfig, ...]:
        """Return the settings of each member's training.

        A training's directory is named after its settings, so that experiments which need the same one share it.

        Raises:
            UsageError: There are fewer epochs than snapshots.
        """
        members: list[TrainConfig] = []
        epochs = self.settings.epochs
        if self.arm.chained and epochs < self.arm.members:
            raise UsageError(
                f"`epochs` must be at least {self.arm.members} for {shown(self.arm.label)}, got {epochs}: raise it, "
                "each snapshot needs one"
            )
        for index in range(self.arm.members):
            changes: dict[str, Any] = {"seed": self.seed + index * _SEEDS_APART}
            if not self.arm.has_experts:  # settings that do not apply to it do not make it another training
                changes |= {each.name: each.default for each in fields(TrainConfig) if each.name in _OF_EXPERTS}
            if self.arm.chained:
                share = epochs // self.arm.members + (index < epochs % self.arm.members)
                warmup = self.settings.warmup_epochs
                changes |= {"epochs": share, "warmup_epochs": warmup and min(warmup, share - 1)}
                if members:  # starts from the whole network before it
                    start = {"init_from": f"{members[-1].out}/last.safetensors", "init_skip": None, "pretrained": False}
                    changes |= {**start, "warmup_epochs": 0}
            if self.arm.method is not None:
                changes["method"] = self.arm.method
            config = replace(
                self.settings,
                model=self.arm.model,
                model_options={**self.settings.model_options, **self.arm.options},
                out="-",
                **changes,
            )
            # The name of a file to start from counts too: a resumed run must have the same one.
            what = _what(config, follows=bool(members) and self.arm.chained), config.init_from
            digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]
            members.append(replace(config, out=str(self.out / _TRAINED / f"{self.arm.model}-{digest}")))
        return tuple(members)

    def fingerprint(self) -> str:
        """Return the settings as text, which distinguishes this run from others of the same arm and seed."""
        configs = self.configs()
        members = [_what(each, follows=self.arm.chained and each is not configs[0]) for each in configs]
        return json.dumps({"members": members, "chained": self.arm.chained}, sort_keys=True)

    def record(self) -> RunRecord | None:
        """Return the record of the run, or `None` if it is not finished.

        Raises:
            UsageError: It is not a record, or something else is in the place of a file or a directory of this run.
        """
        trained = [Path(each.out) for each in self.configs()]
        check_own(self.path.parent, self.out / _TRAINED, *trained)
        check_own_files(self.path, self.log, *(self.path.parent / name for name in RESULTS))
        try:
            found = read_record(RunRecord, json.loads(read_text(self.path)))
            self._check_own_record(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"`out` must hold records of this version, got {shown_name(self.path)}, which is not one "
                f"({first_line(error)}): remove it"
            ) from error
        return found

    def _check_own_record(self, found: RunRecord) -> None:
        """Check that a record is of this run, and of a run at all.

        Raises:
            SchemaError: It is of another one, or has a number that no run measures.
        """
        own = {"experiment": self.experiment.name, "label": self.arm.label, "seed": self.seed}
        for name, value in {**own, "settings": self.fingerprint()}.items():
            one_of(value)(f"`{name}`", getattr(found, name))
        for name in ("params", "madds", "images_trained"):
            whole(1)(f"`{name}`", getattr(found, name))
        scores = (found.score, *found.member_scores, *chain(*found.curve))
        for each in scores:
            number("a number from 0 to 1", lambda value: 0 <= value <= 1)("`score`", each)
        number("a number of at least 0", lambda value: value >= 0)("`seconds`", found.seconds)


def _what(config: TrainConfig, *, follows: bool) -> dict[str, Any]:
    """Return the settings that identify a training, without where it runs; a file to start from by its content.

    Args:
        config: Its settings.
        follows: Whether it starts from another member, whose directory identifies it.
    """
    where = ("out", "workers", "cache_images", "device", "log_with")
    settings = {key: value for key, value in asdict(config).items() if key not in where}
    if config.init_from is not None:
        path = Path(config.init_from)
        if follows:
            settings["init_from"] = path.parent.name
        elif path.is_file():  # a missing one is reported when it is read
            settings["init_from"] = _digest(path, path.stat().st_mtime_ns)
    return settings


@cache
def _digest(path: Path, changed: int) -> str:
    """Return a digest of a file's bytes, read once for all runs as long as it was last changed at the same time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**24):  # not all at once: it may be larger than the memory
            digest.update(part)
    return digest.hexdigest()


def check_data(run: Run) -> None:
    """Open the data of a run, to check it before many processes use it.

    Raises:
        UsageError: The data cannot be used.
    """
    if run.experiment.task == "classification":
        open_data(run.configs()[0])
        return
    from condconv.lab.experiments.detection.coco import CocoImages

    for split in ("train", "val"):
        CocoImages(Path(run.settings.data), split, augment=False)


def execute(run: Run, *, progress: bool = True) -> RunRecord:
    """Train the members of a run that are not trained yet, measure, and write the record.

    If another run is doing one of the trainings, this one waits for it. A finished run is not changed.

    Raises:
        UsageError: Settings or data do not fit.
        TrainingError: The loss is no longer a finite number.
        TrainingInterrupted: Ctrl-C; the finished epochs are saved.
    """
    done = run.record()
    if done is not None:
        return done
    measured = {"classification": _classify, "detection": _detect}[run.experiment.task](run, progress)
    record = RunRecord(
        experiment=run.experiment.name,
        label=run.arm.label,
        seed=run.seed,
        settings=run.fingerprint(),
        **measured,
        machine=describe_machine(),
    )
    make_directory(run.path.parent)
    write_own(run.path, json.dumps(asdict(record), indent=2) + "\n")
    return record


def describe_machine() -> dict[str, Any]:
    """Return the machine and the versions, in types that JSON has."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _classify(run: Run, progress: bool) -> dict[str, Any]:
    """Train the members as classifiers, and return the measured fields of the record."""
    results = [
        train(config, build=build, progress=progress, title=f"{run.name} ({index + 1} of {run.arm.members})", wait=True)
        for index, config in enumerate(run.configs())
    ]
    loaded = [load_trained(each.last, build=build) for each in results]
    networks = [network for _, network in loaded]
    preprocessing = loaded[0][0].preprocessing
    data = open_data(run.configs()[0], preprocessing)
    example = torch.zeros(1, preprocessing.channels, preprocessing.size, preprocessing.size)
    costs = [count(network, example).total for network in networks]
    reading = Reading(batch_size=256, device=run.settings.device, progress=False)
    curves = [[each.val_top1 for each in result.metrics] for result in results]
    return {
        "params": sum(each.params for each in costs),
        "madds": sum(each.madds for each in costs),
        # The last epoch, not the best one: choosing the epoch by the validation images would flatter all networks.
        "score": curves[0][-1] if len(networks) == 1 else evaluate_images(_Average(networks), data.val, reading).top1,
        "member_scores": tuple(curve[-1] for curve in curves),
        "curve": tuple(map(tuple, curves)),
        "loss_curve": tuple(tuple(each.train_loss for each in result.metrics) for result in results),
        "images_trained": sum(result.images for result in results),
        "seconds": round(sum(each.seconds for result in results for each in result.metrics), 1),
    }


def _detect(run: Run, progress: bool) -> dict[str, Any]:
    """Train a detector, and return the measured fields of the record."""
    from condconv.lab.experiments.detection import train_detector

    (config,) = run.configs()
    result = train_detector(config, progress=progress, title=run.name, wait=True)
    scores = tuple(each.ap for each in result.metrics)
    return {
        "params": result.params,
        "madds": result.madds,
        "score": scores[-1],
        "member_scores": scores[-1:],
        "curve": (scores,),
        "loss_curve": (tuple(each.train_loss for each in result.metrics),),
        "images_trained": result.images * len(result.metrics),
        "seconds": round(sum(each.seconds for each in result.metrics), 1),
    }


class _Average(nn.Module):
    """Several classifiers as one, which returns the logarithm of their mean probabilities."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x).float().softmax(dim=1) for network in self.networks]).mean(0).log()
