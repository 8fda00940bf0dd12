"""The preprocessing of images in evaluation, decided once, when a run begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from condconv.lab.config import TrainConfig
from condconv.lab.data import normalization


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing; a checkpoint stores it.

    The shorter side of a picture is scaled to `size / crop` pixels, the middle `size` x `size` pixels are cut out, and
    values from 0 to 1 have `mean` subtracted and are divided by `std`.

    Attributes:
        size: Side of the square input in pixels.
        channels: 1 or 3.
        crop: Share of the shorter side that is kept.
        interpolation: How it is scaled, by Pillow's name.
        mean: Of each channel.
        std: Of each channel.
    """

    size: int
    channels: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def scaled_to(self) -> int:
        """Pixels that the shorter side is scaled to, before the middle is cut out."""
        return int(self.size / self.crop)

    def facts(self) -> dict[str, Any]:
        """Return them as plain values, as `condconv.export.export` takes them."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def resolve(config: TrainConfig) -> Preprocessing:
    """Return the preprocessing of a new run."""
    is_digits = config.data == "digits"
    size = config.image_size or (8 if is_digits else 224)
    channels = config.in_chans or (1 if is_digits else 3)
    chosen = normalization.of_config(config, channels)
    return Preprocessing(size, channels, val_crop(size), "bicubic", chosen.mean, chosen.std)


def val_crop(size: int) -> float:
    """Return the share of the shorter side that evaluation keeps of an image.

    Cutting the margin away helps with photographs; small images are mostly cropped to the thing already.
    """
    return 0.875 if size >= 128 else 1.0
