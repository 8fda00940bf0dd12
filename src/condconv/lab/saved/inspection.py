"""What the routing of a checkpoint learned: the images, the measurements and the page of `condconv report`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

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
from condconv.analysis.outputs import outputs
from condconv.errors import UsageError, require_extra, shown_name
from condconv.files.paths import check_can_write
from condconv.lab.data.images import Images
from condconv.lab.data.workers import shortages_explained
from condconv.lab.rules import whole
from condconv.lab.saved import network as networks
from condconv.lab.saved.reading import Reading, open_images, own_data
from condconv.lab.saved.rebuild import load_trained


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

    @staticmethod
    def check_can_save(path: str | Path) -> None:
        """Check, before the work begins, that an inspection can be saved to a path.

        Raises:
            UsageError: The suffix is neither .html nor .json, or the file cannot be written.
            MissingExtraError: A page needs the extra `report`.
        """
        suffix = Path(path).suffix
        if suffix not in (".html", ".json"):
            raise UsageError(f"`out` must end in .html or .json, got {shown_name(path)}: give it one of these suffixes")
        check_can_write(Path(path))
        if suffix == ".html":
            require_extra("plotly", "report")

    def save(self, path: str | Path) -> None:
        """Write a `.html` page that needs no other file, or a `.json` file for `RoutingReport.load`.

        Raises:
            UsageError: As for `check_can_save`.
            MissingExtraError: As for `check_can_save`.
        """
        self.check_can_save(path)
        if Path(path).suffix == ".json":
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
        data: As for `evaluate_checkpoint`, or a directory of images without class folders; None for the digits,
            if the network was trained on them.
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
    checkpoint, network = load_trained(path, build=build)
    shown = data or own_data(checkpoint, "val")
    images, labelled = open_images(checkpoint, shown, data_dir=data_dir, skip=reading.skip)
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
    with RoutingRecorder(network, class_names) as recorder:
        for _, targets, _ in outputs(network, images):
            recorder.update(targets)
    return recorder.report()


def _picture(images: Images, index: int, labelled: bool) -> Picture:
    image, target = images.read(index)
    name = Path(images.filename(index)).name
    caption = f"{images.class_names[target]}: {name}" if labelled else name
    return make_picture(image, shown_name(caption))
