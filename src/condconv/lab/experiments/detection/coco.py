"""Images with boxes in COCO's format, and COCO's score."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from condconv.errors import UsageError, first_line, require_extra, shown, shown_name
from condconv.files.paths import read_text
from condconv.lab.data.contents import UNREADABLE, open_image

Target = dict[str, Any]
_MOST_PIXELS = 1e9  # along a side; NaN is not below it either
_LONGEST_ANNOTATIONS = 2**30  # bytes; those of COCO itself have 450 MB


class CocoImages(Dataset[tuple[Tensor, Target]]):
    """One split of a directory in COCO's layout.

    Args:
        root: Directory with `annotations/instances_<split>*.json` and the images in `<split>*/`, the layout of COCO.
        split: `"train"` or `"val"`.
        augment: Whether images are distorted, zoomed out, cropped and flipped, as SSD's authors do.

    Attributes:
        class_names: Names of the kinds of objects, in the order of their labels 1 to K.

    Raises:
        UsageError: A file is missing, or is not in COCO's format, or no image has a box.
    """

    def __init__(self, root: Path, split: str, *, augment: bool) -> None:
        self.annotations = _only(root / "annotations", f"instances_{split}*.json")
        self.images = _only(root, f"{split}*/")
        named = shown_name(self.annotations)
        try:
            content = json.loads(read_text(self.annotations, _LONGEST_ANNOTATIONS))
            names = _by_id(content["categories"], "name")
            self._labels = {identity: index for index, identity in enumerate(sorted(names), start=1)}
            self.class_names = tuple(names[identity] for identity in self._labels)
            self._boxes = _boxes_by_image(content["annotations"], self._labels)
            files = _by_id(content["images"], "file_name")
            for name in files.values():
                _check_below(name)
            self._files = [each for each in files.items() if split != "train" or each[0] in self._boxes]
            # What is scored against; of the training images it would take memory for nothing.
            self._truth = None if split == "train" else _truth(content["annotations"], files, self._labels)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
            raise UsageError(
                f"`data` must have annotations in COCO's format, got {named} ({reason}): check the file"
            ) from error
        if not self._files:
            raise UsageError(
                f"`data` must have an image with a box, got {named} without one: training skips the others"
            )
        self._transform = _augmentation() if augment else v2.Identity()
        self._to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an image `[3, H, W]` in 0 to 1, and its boxes `[N, 4]`, labels `[N]` and id."""
        identity, name = self._files[index]
        try:
            with open_image(self.images / name) as opened:
                image = opened.convert("RGB")
        except UNREADABLE as error:
            raise UsageError(
                f"`data` must have readable images, got {shown_name(self.images / name)} ({first_line(error)}): "
                "replace the file, or take it out of the annotations"
            ) from error
        boxes, labels = self._boxes.get(identity, ([], []))
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=image.size[::-1]
            ),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        image, target = self._transform(image, target)
        target["boxes"] = target["boxes"].as_subclass(Tensor)
        return self._to_tensor(image).as_subclass(Tensor), {**target, "image_id": identity}

    def mean_average_precision(self, detections: Mapping[int, Mapping[str, Tensor]]) -> float:
        """Return COCO's AP, averaged over overlaps from 0.5 to 0.95, 0 to 1.

        Args:
            detections: By image id, of the validation split: `boxes` `[N, 4]`, `labels` `[N]`, `scores` `[N]`.

        Raises:
            MissingExtraError: pycocotools is not installed.
        """
        coco = require_extra("pycocotools.coco", "detection")
        evaluation = require_extra("pycocotools.cocoeval", "detection")
        ids = {label: category for category, label in self._labels.items()}
        rows = [
            {
                "image_id": identity,
                "category_id": ids[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for identity, found in detections.items()
            for (left, top, right, bottom), label, score in zip(
                found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
            )
        ]
        if not rows:
            return 0.0
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and has no option not to
            truth = coco.COCO()
            truth.dataset = copy.deepcopy(self._truth)  # it adds to the rows
            truth.createIndex()
            judge = evaluation.COCOeval(truth, truth.loadRes(rows), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return max(0.0, float(judge.stats[0]))  # -1 where nothing could be judged


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(each for each in folder.glob(pattern) if each.is_dir() == pattern.endswith("/"))
    if len(found) != 1:
        raise UsageError(
            f"`data` must be a directory in COCO's layout, with one {shown_name(folder.name)}/{pattern}, got "
            f"{len(found)} under {shown_name(folder)}: it needs annotations/instances_train*.json, "
            "annotations/instances_val*.json, train*/ and val*/"
        )
    return found[0]


def _check_below(name: str) -> None:
    """Check that the name of an image leads nowhere but below the directory of the images.

    Raises:
        ValueError: It does not: whoever wrote the annotations could choose any file of this machine.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the file_name {shown(name)}, which is outside the directory of the images")


def _by_id(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, str]:
    """Return one text of each row, by the id of the row.

    Raises:
        ValueError: An id or a text is of another type, or two rows have the same id.
    """
    found: dict[int, str] = {}
    for each in rows:
        identity, text = each["id"], each[key]
        if type(identity) not in (int, str) or type(text) is not str:
            raise ValueError(f"id {shown(identity)} with the {key} {shown(text)}")
        if identity in found:
            raise ValueError(f"the id {shown(identity)} is there twice, for {shown(found[identity])} and {shown(text)}")
        found[identity] = text
    return found


def _boxes_by_image(
    annotations: Sequence[Mapping[str, Any]], labels: Mapping[int, int]
) -> dict[int, tuple[list[list[float]], list[int]]]:
    """Return corners and labels of the boxes of each image; crowds and boxes without area are left out.

    Raises:
        ValueError: A box is not of four numbers that can be pixels.
        KeyError: A row lacks something, or its category is not in the file.
    """
    boxes: dict[int, tuple[list[list[float]], list[int]]] = {}
    for each in annotations:
        left, top, width, height = box = each["bbox"]
        if not all(type(value) in (int, float) and abs(value) < _MOST_PIXELS for value in box):
            raise ValueError(f"the box {shown(box)} of the image {shown(each['image_id'])}")
        if each.get("iscrowd", 0) or width <= 0 or height <= 0:
            continue
        corners, kinds = boxes.setdefault(each["image_id"], ([], []))
        corners.append([left, top, left + width, top + height])
        kinds.append(labels[each["category_id"]])
    return boxes


def _truth(
    annotations: Sequence[Mapping[str, Any]], files: Mapping[int, str], labels: Mapping[int, int]
) -> dict[str, list[dict[str, Any]]]:
    """Return what pycocotools scores against, with nothing in it that has not been checked.

    It fails without an id, an area or `iscrowd`, and takes an annotation whose id is 0, or is there twice, for one that
    is not found. The area only chooses among small and large objects, which COCO's AP does not.
    """
    rows = [
        {
            "id": number,
            "image_id": each["image_id"],
            "category_id": each["category_id"],
            "bbox": each["bbox"],
            "area": abs(each["bbox"][2] * each["bbox"][3]),
            "iscrowd": int(bool(each.get("iscrowd", 0))),
        }
        for number, each in enumerate(annotations, start=1)
        if each["image_id"] in files and each["category_id"] in labels
    ]
    return {
        "images": [{"id": each} for each in files],
        "categories": [{"id": each} for each in labels],
        "annotations": rows,
    }


def _augmentation() -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=0.5),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
        ]
    )
