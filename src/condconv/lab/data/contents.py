"""What a directory of images, a tar file or a shard may contain: one rule for all of them.

Only regular files of a few kinds are opened. Whoever made the directory may have put anything into it: pipes that never
end, links in circles, files that would start another program.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image

from condconv.errors import UsageError, few, shown_name
from condconv.files.checkpoint_format import MOST_CLASSES, MOST_TEXT

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What an image may be inside, whatever it is called. Pillow knows more; for PostScript it starts another program."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""What a file is called to count as an image, in lower or upper case."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises of a file that holds no image, or a broken one."""

MOST_BYTES = 2**30
"""Of an image in a tar file, which is read whole."""

MOST_SCALED = 2**27
"""Pixels of an image that is scaled until its shorter side suits the network; four times a square is always allowed."""

LINKS, NOWHERE = "links to folders above or already read", "links that lead nowhere"
ODD, REPLACED = "pipes, sockets or devices", "files replaced by later ones of the same name"
HIDDEN = "hidden folders"

_log = logging.getLogger(__name__)


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name; macOS leaves files ._NAME next to those it copies elsewhere."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def is_hidden(folder: str) -> bool:
    """Return whether a folder is hidden by its name: programs keep copies and other things of their own there."""
    return folder.startswith(".")


def open_image(stored: IO[bytes] | Path) -> Image.Image:
    """Open an image of one of `FORMATS`; its pixels are read later.

    Raises:
        OSError: It is of another kind, or the path is not that of a regular file.
        Image.DecompressionBombError: It has more pixels than Pillow allows, before memory is asked for.
    """
    if isinstance(stored, Path) and stored.exists() and not stored.is_file():
        raise OSError("not a regular file")
    return Image.open(stored, formats=FORMATS)


def check_sides(size: tuple[int, int], scaled_to: int) -> None:
    """Check that an image does not become too large when its shorter side is scaled to `scaled_to` pixels.

    A line of 1 x 65,000 pixels takes a file of a kilobyte, and 17 GB if it is to be 256 pixels high.

    Raises:
        ValueError: It does.
    """
    short, long = sorted(size)
    scaled = scaled_to * scaled_to * long / max(short, 1)
    if scaled > max(MOST_SCALED, 4 * scaled_to * scaled_to):
        raise ValueError(f"{size[0]} x {size[1]} pixels, too narrow to be scaled to {scaled_to} pixels")


def read_part(path: Path, offset: int, size: int) -> IO[bytes]:
    """Return a file that is inside another one.

    Raises:
        ValueError: It is larger than an image may be.
        OSError: It cannot be read.
    """
    if size > MOST_BYTES:
        raise ValueError(f"{size / 2**30:.1f} GiB, and an image in a tar file may have {MOST_BYTES / 2**30:g}")
    with path.open("rb") as file:  # not one for all worker processes, which would move it under one another
        file.seek(offset)
        return io.BytesIO(file.read(size))


def check_class_names(names: Sequence[str], place: str | Path) -> tuple[str, ...]:
    """Return names of classes that can be written into checkpoints and tables, and read from them.

    Unicode has two codings of many letters, and a system may change one to the other: names are returned in NFC.

    Raises:
        UsageError: One is empty, too long or not UTF-8, two are the same, or there are too many.
    """
    if len(names) > MOST_CLASSES:
        raise UsageError(
            f"`data` must have at most {MOST_CLASSES:,} classes, got {len(names):,} in {shown_name(place)}: merge some"
        )
    rules = (
        ("in UTF-8", lambda name: re.search("[\ud800-\udfff]", name) is None),  # so Python has other bytes
        (f"of 1 to {MOST_TEXT} characters", lambda name: 0 < len(name) <= MOST_TEXT),
    )
    for rule, holds in rules:
        wrong = [shown_name(name, 80) or "an empty one" for name in names if not holds(name)]
        if wrong:
            raise UsageError(
                f"`data` must have classes with names {rule}, got {few(wrong)} in {shown_name(place)}: rename the "
                "folders, or what else names the classes"
            )
    same = [unicodedata.normalize("NFC", name) for name in names]
    twins = [name for name, count in Counter(same).items() if count > 1]
    if twins:
        raise UsageError(
            f"`data` must have classes with different names, got {few(twins)} more than once in {shown_name(place)}, "
            "perhaps in two codings of Unicode: merge the folders, or rename one"
        )
    return tuple(same)


def log_left_out(left_out: Counter[str], place: Path) -> None:
    """Report how much was left out, if anything."""
    counts = ", ".join(f"{what} ({count})" for what, count in sorted((+left_out).items()))
    if counts:
        _log.warning("left out in %s: %s", shown_name(place), counts)


def natural_order(name: str) -> tuple[list[Any], str]:
    """Return a key that sorts names with 2 before 10, and those that differ only in case or zeros in a fixed order."""
    parts = re.split(r"(\d+)", name.lower())
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [(len(each), each) for each in digits]  # not int: it refuses thousands of digits
    return parts, name
