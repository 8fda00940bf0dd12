"""Find the type of a file from its first bytes, and what to do if it contains no weights."""

from __future__ import annotations

from pathlib import Path

from condconv.weights.archives import members_of

_FIRST = 512
# The first bytes of files that are taken for weights, and what to say of each.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull where it comes from"),
    (b"<!doctype html", "an HTML page, as a failed download leaves it: download the file again"),
    (b"<html", "an HTML page, as a failed download leaves it: download the file again"),
    (b"<?xml", "an XML page, as a failed download leaves it: download the file again"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"\x89hdf\r\n\x1a\n", "an HDF5 file, as Keras writes: save the network's state_dict() with torch.save"),
    (b"\x93numpy", "an array of numpy's: save the network's state_dict() with torch.save"),
)
_PICKLE = b"\x80"  # of the second protocol or a later one; torch.save writes no earlier
_ZIP = b"PK\x03\x04"
_MOST_HEADER = 100_000_000  # bytes, by the format's definition


def first_bytes(file: Path) -> bytes:
    """Return the bytes that show what a file is, for any suffix.

    Raises:
        OSError: It cannot be opened.
    """
    with file.open("rb") as stream:
        return stream.read(_FIRST)


def why_not_weights(file: Path, first: bytes) -> str | None:
    """Return what a file is and the remedy if it is neither torch's nor safetensors, otherwise `None`.

    Args:
        file: An existing file; one of the right kind may still be damaged.
        first: Its first bytes.
    """
    if is_safetensors(first):  # these are a number, which may be any
        return None
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, what in _OTHERS:
        if first.startswith(magic) or text.startswith(magic):
            return what
    if not first:
        return "empty: take another copy"
    if first[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if first.startswith(_ZIP) and not _may_have_pickle(file):
        return "a zip archive that torch.save did not write: unpack it first"
    if first.startswith((_PICKLE, _ZIP)):
        return None
    return f"of no kind that is known, beginning with {first[:16]!r}: give the file that was saved"


def is_safetensors(first: bytes) -> bool:
    """Return whether a file begins like a safetensors file: with the length of a header, then the header."""
    return first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= _MOST_HEADER


def _may_have_pickle(file: Path) -> bool:
    """Return whether a zip archive has what torch.save writes, as far as its table of members can be read."""
    members = members_of(file)
    return members is None or any(each.filename.endswith("/data.pkl") for each in members)
