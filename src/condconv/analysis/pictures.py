"""The pictures of the page: choose images, and write them as small files inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from condconv.analysis.report import RoutingReport
from condconv.errors import UsageError, check_type
from condconv.errors import shown as shown_value

MOST_PICTURES = 1000
"""Most pictures on a page: with `LONGEST_SIDE` they take two or three megabytes."""
LONGEST_SIDE = 64
"""Longest side of a picture, in pixels."""
_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        source: Data URI of a JPEG file.
        caption: Its name and its class.
    """

    source: str
    caption: str


def choose_pictures(report: RoutingReport, most: int = MOST_PICTURES) -> list[int]:
    """Return the numbers of the images to show, each once.

    First the image with the highest weight of every expert, then the second, and so on, from the last layer to the
    first, until there are enough.

    Args:
        report: The report, with the examples of the highest weights.
        most: Maximum number.
    """
    check_type("report", report, RoutingReport, "be a RoutingReport", "give what RoutingRecorder.report() returns")
    if type(most) is not int or most < 0:
        raise UsageError(f"`most` must be a whole number of 0 or more, got {shown_value(most)}: 0 chooses none")
    ranks = max((record.top_ids.shape[1] for record in report.routings), default=0)
    chosen: dict[int, None] = {}
    for rank in range(ranks):
        for record in reversed(report.routings):
            chosen |= dict.fromkeys(record.top_ids[:, rank : rank + 1].flatten().tolist())
    return list(chosen)[:most]


def make_picture(image: Any, caption: str) -> Picture:
    """Return a picture of a PIL image, at most 64 pixels high and wide.

    Args:
        image: An image in any mode; not changed.
        caption: Its name.
    """
    if not hasattr(image, "convert"):
        raise UsageError(f"`image` must be an image of Pillow's, got {shown_value(image)}: open it with PIL.Image.open")
    check_type("caption", caption, str, "be a text", "give an empty one for none")
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", caption)


def shown(ids: Sequence[int], weights: Sequence[float], pictures: dict[int, Picture]) -> list[dict[str, Any]]:
    """Return what the page needs of one expert's images: number and weight of those that have a picture."""
    return [
        {"id": number, "weight": round(weight, 3)}
        for number, weight in zip(ids, weights, strict=True)
        if number in pictures
    ]
