"""Zip archives, which `torch.save` writes, and whose tables and members may be damaged in any way."""

from __future__ import annotations

import zipfile
from pathlib import Path


def members_of(file: Path) -> list[zipfile.ZipInfo] | None:
    """Return the members of a zip archive; `None` if the file is none, or its table of members cannot be read.

    Raises:
        MemoryError: The table is too large.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except MemoryError:
        raise
    except Exception:  # a damaged table can fail in any way: of offsets, texts, numbers
        return None


def damaged_member(file: Path) -> str | None:
    """Return the name of the first member that does not hold the bytes that were written, or `None`.

    torch itself does not compare them with their checksums. One of 0 is that of an archive written without any.

    Args:
        file: An archive whose members `members_of` returns.

    Raises:
        MemoryError: A member is too large.
    """
    with zipfile.ZipFile(file) as archive:
        for each in archive.infolist():
            try:
                if each.CRC:
                    with archive.open(each) as member:
                        while member.read(2**24):
                            pass
            except MemoryError:
                raise
            except Exception:  # of zlib, of the other ways to compress, of a damaged header
                return each.filename
    return None
