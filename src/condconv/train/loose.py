"""Images without classes: a directory that has them directly."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from timm.data.readers.img_extensions import add_img_extensions
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets.folder import IMG_EXTENSIONS

from condconv.errors import UsageError


class LooseReader:
    """Images of a directory without class folders; all have class 0.

    Args:
        root: The directory.

    Raises:
        UsageError: It has no image.
    """

    class_names = ("",)

    def __init__(self, root: Path) -> None:
        add_img_extensions(IMG_EXTENSIONS)  # timm alone would leave out bmp, tif and webp without a word
        self._paths = [Path(path) for path, _ in find_images_and_targets(str(root))[0]]
        if not self._paths:
            raise UsageError(
                f"`data` must hold images or class folders with images, got {root} without: check the path"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        return self._paths[index].open("rb"), 0

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Return the path of an image."""
        return str(self._paths[index])
