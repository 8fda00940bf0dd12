"""What the routing of a checkpoint learned: the images, the measurements and the page of `condconv report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from condconv.analysis import (
    Picture,
    RoutingRecorder,
    RoutingReport,
    choose_pictures,
    make_picture,
    make_static_command,
    measure_interventions,
    measure_static,
    save_page,
    verdicts,
)
from condconv.errors import UsageError, shown_name
from condconv.files.paths import check_path
from condconv.lab.config import is_named
from condconv.lab.data.folder import LooseReader, find_split
from condconv.lab.data.image_data import val_transform
from condconv.lab.data.images import Images
from condconv.lab.data.loading import batches, create_loader
from condconv.lab.data.walking import class_folders
from condconv.lab.data.workers import shortages_explained
from condconv.lab.rules import one_of, or_none, whole
from condconv.lab.saved import network as networks
from condconv.lab.saved.checkpoint import Checkpoint
from condconv.lab.saved.evaluate import open_images_of, own_data
from condconv.lab.saved.rebuild import load_trained


@dataclass(frozen=True)
class Reading:
    """How images are read and where the network runs.

    Attributes:
        max_images: Most images, a fixed random choice; None for all.
        batch_size: Images per forward pass.
        workers: Processes that read images.
        on_bad_image: `"error"` or `"skip"`.
        device: `"auto"` or `"cpu"`.
        progress: Whether to show a bar on a terminal.

    Raises:
        UsageError: A number is too small, or a choice is none of those above.
    """

    max_images: int | None = None
    batch_size: int = 64
    workers: int = 0
    on_bad_image: str = "error"
    device: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        or_none(whole(1, 1_000_000_000)).check("max_images", self.max_images)
        whole(1).check("batch_size", self.batch_size)
        whole(0).check("workers", self.workers)
        one_of("error", "skip").check("on_bad_image", self.on_bad_image)
        one_of("auto", "cpu").check("device", self.device)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the GPU if there is one and the device is `"auto"`; else lay it out for the CPU.

        Channels last is how the compiled kernels read images; in the other layout each layer copies its input first.
        """
        if self.device == "auto" and torch.cuda.is_available():
            return network.to("cuda")
        return network.cpu().to(memory_format=torch.channels_last)

    def choose(self, images: Images) -> list[int]:
        """Return the numbers of the images to read, mixed, always the same."""
        order: list[int] = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        return order[: self.max_images]

    def read(self, images: Images, order: list[int], title: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of these numbers, and their classes, in batches, under a bar with a title."""
        loader = create_loader(Subset(images, order), self.batch_size, workers=self.workers)
        bar: Iterable[tuple[Tensor, Tensor]] = tqdm(
            batches(loader), title, len(loader), disable=None if self.progress else True
        )
        yield from bar


def check_suffix(path: str | Path) -> str:
    """Return the suffix that says in which form an inspection is saved.

    Raises:
        UsageError: It is neither .html nor .json.
    """
    suffix = Path(path).suffix
    if suffix not in (".html", ".json"):
        raise UsageError(f"`out` must end in .html or .json, got {shown_name(path)}: give it one of these suffixes")
    return suffix


@dataclass(frozen=True)
class Inspection:
    """What `inspect_checkpoint` found.

    Attributes:
        report: Statistics and interventions.
        pictures: Images with the highest weights, by the numbers that the report has for them.
        title: Name of the network.
        subtitle: Checkpoint and data.
        command: Shell command that makes the advised layers static, or None.
    """

    report: RoutingReport
    pictures: dict[int, Picture]
    title: str
    subtitle: str
    command: str | None

    def save(self, path: str | Path) -> None:
        """Write a `.html` page that needs no other file, or a `.json` file for `RoutingReport.load`.

        Raises:
            UsageError: Another suffix, or the file cannot be written.
            MissingExtraError: A page needs the extra `report`.
        """
        if check_suffix(path) == ".json":
            self.report.save(path)
            return
        save_page(
            self.report,
            path,
            title=self.title,
            subtitle=self.subtitle,
            pictures=self.pictures,
            command=self.command,
        )


@shortages_explained()
def inspect_checkpoint(
    path: str | Path,
    data: str | None = None,
    *,
    data_dir: str | None = None,
    layer_images: int = 10_000,
    reading: Reading | None = None,
    build: networks.Build = networks.build_from_zoo,
) -> Inspection:
    """Record the routing of a trained network, measure what it gains, and judge each layer.

    The images are read twice (three times if layers are advised to be static), and one batch is in memory at a time.

    Args:
        path: A checkpoint of `train` or of `make_checkpoint_static`.
        data: As for `evaluate_checkpoint`, or a directory of images without class folders; None for the run's own.
        data_dir: Where the files of a named dataset are.
        layer_images: Most images for the measurement of each single layer.
        reading: How images are read; None for all of them, on the GPU if there is one.
        build: Builds the network; for networks of your own.

    Raises:
        UsageError: The checkpoint or the data cannot be used, or the network has no conditional layer left.
        TrainingError: The network has diverged.
    """
    whole(1, 1_000_000_000).check("layer_images", layer_images)
    reading = reading or Reading()
    shown = data or own_data(path, "val")
    checkpoint, network = load_trained(path, build=build)
    images, labelled = open_images(checkpoint, shown, data_dir=data_dir, skip=reading.on_bad_image == "skip")
    network = reading.place(network)
    order = reading.choose(images)
    names = checkpoint.class_names if labelled else None
    report = record(network, reading.read(images, order, "routing"), names)
    measured = measure_interventions(
        network, reading.read(images, order, "interventions"), report, layer_images=layer_images
    )
    report = replace(report, interventions=measured)
    advised = [verdict.routing for verdict in verdicts(report) if verdict.kind == "static"]
    if advised:
        together = measure_static(network, reading.read(images, order, "advice"), report, advised)
        report = replace(report, interventions=(*measured, together))
    return Inspection(
        report,
        {number: _picture(images, order[number], labelled) for number in choose_pictures(report)},
        checkpoint.config.model,
        f"{path} on {len(order)} of {len(images)} images of {shown}",
        make_static_command(report, str(path), data, data_dir),
    )


def record(
    network: nn.Module, images: Iterable[tuple[Tensor, Tensor]], class_names: tuple[str, ...] | None
) -> RoutingReport:
    """Run a network over images and record its routing.

    Args:
        network: In evaluation mode.
        images: Batches with classes; negative ones mark images that could not be read.
        class_names: Names of the classes; None for images without.
    """
    device = next(network.parameters()).device
    with RoutingRecorder(network, class_names) as recorder, torch.inference_mode():
        for batch, targets in images:
            network(batch.to(device))
            recorder.update(targets)
    return recorder.report()


def open_images(
    checkpoint: Checkpoint, data: str, *, split: str = "val", data_dir: str | None = None, skip: bool = False
) -> tuple[Images, bool]:
    """Open images for inspecting a network, and return whether they have classes.

    Args:
        checkpoint: The network's; tells size, channels, normalization and class names.
        data: As for `evaluate_checkpoint`, or a directory of images without class folders.
        split: `"val"`, or `"train"` for the images of `train/`, where a directory has them apart.
        data_dir: Where the files of a named dataset are.
        skip: Whether unreadable images are left out.

    Raises:
        UsageError: The data is missing, or its classes are not the network's.
    """
    check_path(data, "data")
    folder = Path(data)
    if folder.is_dir() and not is_named(data):
        split = split if find_split(folder, split) else "val"
        folder = find_split(folder, split) or folder
        if folder.is_dir() and not class_folders(folder, Counter()):
            images = Images(
                LooseReader(folder),
                ("",),
                in_chans=checkpoint.in_chans,
                scaled_to=checkpoint.preprocessing.scaled_to,
                skip_unreadable=skip,
            )
            images.transform = val_transform(checkpoint.preprocessing)
            return images, False
    return open_images_of(checkpoint, data, split=split, data_dir=data_dir, skip=skip), True


def _picture(images: Images, index: int, labelled: bool) -> Picture:
    image, target = images.read(index)
    name = Path(images.filename(index)).name
    caption = f"{images.class_names[target]}: {name}" if labelled else name
    return make_picture(image, shown_name(caption))
