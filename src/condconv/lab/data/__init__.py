"""Reading images: folders, tar files, shards and named datasets, transformed as training and evaluation need.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condconv.lab.face import find

if TYPE_CHECKING:
    from condconv.lab.data.image_data import ImageData, open_data
    from condconv.lab.data.preprocessing import Preprocessing

__all__ = [
    "ImageData",
    "Preprocessing",
    "open_data",
]

_HOMES = {
    "ImageData": "image_data",
    "Preprocessing": "preprocessing",
    "open_data": "image_data",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)
