"""Reading images: folders, tar files, shards and named datasets, transformed as training and evaluation need.

What is public is imported at its first use, and needs the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condconv._lazy import public_names

if TYPE_CHECKING:
    from condconv.lab.data.image_data import ImageData, open_data
    from condconv.lab.data.preprocessing import Preprocessing

__all__ = [
    "ImageData",
    "Preprocessing",
    "open_data",
]

__getattr__, __dir__ = public_names(__name__, __all__, ("preprocessing", "image_data"), extra="train")
