"""The preprocessing of images in evaluation, decided once, when a run begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import get_pretrained_cfg

from condconv.errors import UsageError
from condconv.lab.config import TrainConfig
from condconv.lab.data.digits import EMBEDDED


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, on the scale 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
INCEPTION = Normalization(IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)


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
    embedded = EMBEDDED.get(config.data)
    size = config.image_size or (224 if embedded is None else embedded.size)
    channels = config.in_chans or (3 if embedded is None else 1)
    chosen = normalization_of(config, channels)
    return Preprocessing(size, channels, val_crop(size), "bicubic", chosen.mean, chosen.std)


def val_crop(size: int) -> float:
    """Return the share of the shorter side that evaluation keeps of an image.

    Cutting the margin away helps with photographs; small images are mostly cropped to the thing already.
    """
    return 0.875 if size >= 128 else 1.0


def normalization_of(config: TrainConfig, in_chans: int) -> Normalization:
    """Return what a run normalises by.

    A choice in the settings comes first, then what pretrained weights need, then what suits the data.
    """
    if config.normalization is not None:
        chosen = {"imagenet": IMAGENET, "inception": INCEPTION}[config.normalization]
    elif config.pretrained:
        chosen = _of_pretrained(config.model, config.model_options.get("pretrained_cfg"))
    elif config.data in EMBEDDED:
        embedded = EMBEDDED[config.data]
        return Normalization((embedded.mean,) * in_chans, (embedded.std,) * in_chans)
    else:
        chosen = IMAGENET if in_chans == 3 else INCEPTION
    # timm sums the kernels of a pretrained stem over the colours, so one grey channel takes their mean.
    return chosen if in_chans == 3 else Normalization((sum(chosen.mean) / 3,), (sum(chosen.std) / 3,))


def _of_pretrained(model: str, tag: Any) -> Normalization:
    """Return timm's description of the weights that `pretrained` loads: timm's default, or those of a tag."""
    from condconv.models import get_model_info
    from condconv.models.pretrained import CONDITIONAL

    try:
        name = CONDITIONAL.get(model) or get_model_info(model).timm_name
    except ValueError:
        return IMAGENET  # the name is reported where the network is built
    if name is None:
        return IMAGENET
    plain = name.partition(".")[0]
    try:
        known = get_pretrained_cfg(f"{plain}.{tag}" if isinstance(tag, str) and tag else name)
    except RuntimeError as error:
        raise UsageError(
            f"`pretrained_cfg` must be a tag that timm has for {plain}, got {tag!r}: "
            f'timm.list_pretrained("{plain}.*") lists them'
        ) from error
    return IMAGENET if known is None else Normalization(tuple(known.mean), tuple(known.std))
