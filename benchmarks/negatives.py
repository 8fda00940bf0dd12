"""Turn a chance half of the images of a dataset into their negatives: data on which examples need different kernels.

    python benchmarks/negatives.py cifar10 negatives

Reads `train.tar` and `val.tar` in the first directory, with images in class folders, and writes the same into the
second. Which images are turned depends on their names alone. Labels stay.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import zlib
from pathlib import Path

from PIL import Image, ImageOps


def turn_half(source: Path, target: Path) -> int:
    """Copy a tar file of images, half of them as negatives, losslessly; returns how many were turned."""
    turned = 0
    with tarfile.open(source) as given, tarfile.open(target, "w") as written:
        for member in filter(tarfile.TarInfo.isfile, given):
            image = Image.open(given.extractfile(member)).convert("RGB")  # type: ignore[arg-type] # it is a file
            if zlib.crc32(member.name.encode()) % 2:
                image, turned = ImageOps.invert(image), turned + 1
            content = io.BytesIO()
            image.save(content, "png")
            entry = tarfile.TarInfo(str(Path(member.name).with_suffix(".png")))
            entry.size = content.tell()
            content.seek(0)
            written.addfile(entry, content)
    return turned


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    for name in ("train.tar", "val.tar"):
        print(name, turn_half(arguments.source / name, arguments.target / name), "negatives", flush=True)


if __name__ == "__main__":
    main()
