"""Which paths can become the file of a format."""

from __future__ import annotations

from pathlib import Path

from condconv.errors import UsageError, shown_name
from condconv.files import paths

_PACKAGES = (".mlpackage",)  # directories that count as a file


def check_path(path: Path, format: str, suffix: str) -> None:
    """Refuse a path that cannot become a file of a format.

    Args:
        path: To write.
        format: Its name, for messages.
        suffix: Of its files, with the point.

    Raises:
        UsageError: Another suffix, no directory to write into, a directory in the file's place, or an impossible name.
    """
    named = shown_name(path)
    if path.suffix != suffix:
        raise UsageError(
            f"`path` must end in {suffix} for {format}, got {named}: name it "
            f"{shown_name(path.stem or 'network')}{suffix}"
        )
    paths.check_path(path, "path")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"`path` must be in a directory that exists, got {named}: make it first")
    if path.is_dir() and suffix not in _PACKAGES:
        raise UsageError(f"`path` must be a file, got the directory {named}: take another name")
