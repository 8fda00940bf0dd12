"""Writing and reading the file: one safetensors file, whose header and tensors each have a digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError, first_line, require_extra, shown, shown_name
from condconv.files.checkpoint_format.schema import check_header
from condconv.files.paths import check_path, is_mostly_holes

FORMAT = 6
"""Version of the file's layout; a reader refuses one it does not know."""

_KEY, _KEY_OF_DIGEST = "condconv", "condconv.sha256"  # in what safetensors calls metadata: texts by name
_MOST_HEADER = 32 * 2**20  # bytes; a network of a thousand classes and a thousand epochs takes about one hundredth
_REMEDY = "take another copy, or train again"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose header is read and valid, and whose tensors are still on the disk.

    Attributes:
        path: The file.
        header: As the format's schema says.
        shapes: Shape of each tensor, by its name in the file.
        argument: What to call the file in messages.
    """

    path: Path
    header: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    argument: str = "checkpoint"

    def read(self, *parts: str) -> dict[str, Tensor]:
        """Return the tensors of some parts of the file by name, on the CPU; of a missing part, none.

        Raises:
            UsageError: They are not those that were written.
        """
        safetensors = require_extra("safetensors", "models")
        if is_mostly_holes(self.path):
            raise _broken(self.argument, self.path, "most of it is holes")
        names = [name for name in self.shapes if _part(name) in parts]
        try:
            with safetensors.safe_open(self.path, framework="pt", device="cpu") as file:
                tensors = {name: _copy_of(file.get_tensor(name)) for name in names}
        except (safetensors.SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: torch cannot map the file
            raise _broken(self.argument, self.path, error) from error
        stated: dict[str, str] = self.header["digests"]
        if digests_of(tensors) != {part: stated[part] for part in parts if part in stated}:
            raise _damaged(self.argument, self.path, "tensors")
        return tensors


def to_bytes(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a checkpoint's file.

    Args:
        header: What the schema asks for, without format and digests.
        tensors: By the names of `layout`; some may share memory.

    Raises:
        UsageError: The header is not as the schema says: it could not be read again.
    """
    # A copy of each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        text = json.dumps({"format": FORMAT, **header, "digests": digests_of(tensors)})
        check_header(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"`header` must hold plain values within the format's bounds, got others ({first_line(error)}): it could "
            "not be read again"
        ) from error
    payload: bytes = require_extra("safetensors.torch", "models").save(
        tensors, metadata={_KEY: text, _KEY_OF_DIGEST: hashlib.sha256(text.encode()).hexdigest()}
    )
    return payload


def open_checkpoint(path: str | Path, kind: str | None = None, *, argument: str = "checkpoint") -> StoredCheckpoint:
    """Open a checkpoint: read its header, and nothing else.

    Args:
        path: The file.
        kind: `"classifier"` or `"detector"`; `None` for either.
        argument: What to call the file in messages.

    Raises:
        UsageError: The file is missing, damaged, not a checkpoint, or of another version or kind.
        MissingExtraError: safetensors is not installed.
    """
    path = Path(path)
    _check_is_file(path, argument)
    metadata, shapes = _read_table(path, argument)
    text = metadata.get(_KEY)
    if text is None:
        found, remedy = ", a safetensors file of another program", "give a best.safetensors or last.safetensors"
        raise _refusal(argument, path, "be written by condconv train", found, remedy)
    if _KEY_OF_DIGEST not in metadata:  # as in older versions
        _check_format(_loads(text, path, argument), path, argument)
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get(_KEY_OF_DIGEST):
        raise _damaged(argument, path, "header")
    header = _loads(text, path, argument)
    _check_format(header, path, argument)
    try:
        check_header(header)
    except ValueError as error:
        raise _refusal(argument, path, "have a header as condconv writes it", f", in which {error}") from error
    if kind is not None and header["kind"] != kind:
        raise _refusal(argument, path, f"be of a {kind}", f" of a {header['kind']}", "give another file")
    if set(map(_part, shapes)) != set(header["digests"]) or not all("." in name for name in shapes):
        raise _damaged(argument, path, "list of tensors")  # a part alone would be a tensor of no network: of any size
    return StoredCheckpoint(path, header, shapes, argument)


def is_checkpoint(metadata: Mapping[str, str]) -> bool:
    """Return whether a safetensors file with this metadata calls itself a checkpoint."""
    return _KEY in metadata


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each part: of its tensors' names, dtypes, shapes and bytes, whatever their order."""
    hashes: dict[str, Any] = {}
    for name, tensor in sorted(tensors.items()):
        hashed = hashes.setdefault(_part(name), hashlib.sha256())
        hashed.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hashed.update(_bytes_of(tensor).numpy())
    return {part: hashed.hexdigest() for part, hashed in hashes.items()}


def _copy_of(tensor: Tensor) -> Tensor:
    """Return a copy, byte by byte, that no longer depends on the file."""
    return _bytes_of(tensor).clone().view(tensor.dtype).reshape(tensor.shape)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _part(name: str) -> str:
    return name.partition(".")[0]


def _check_is_file(path: Path, argument: str) -> None:
    check_path(path, argument)
    if not path.is_file():  # nothing else is opened: a pipe or a device could hang, or have no end
        raise _refusal(argument, path, "be a file", remedy="give the path of a best.safetensors or last.safetensors")


def _read_table(path: Path, argument: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return a safetensors file's metadata, and the shapes of its tensors, which it has room for."""
    safetensors = require_extra("safetensors", "models")
    try:
        length = _length_of_header(path, argument)
        if length > _MOST_HEADER:
            raise _broken(argument, path, f"its header would have {length} bytes")
        with safetensors.safe_open(path, framework="np") as file:  # of torch's it would map the tensors too
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
            metadata: dict[str, str] = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: torch cannot map the file
        raise _broken(argument, path, error) from error
    wrong = [name for name, shape in shapes.items() if math.prod(max(size, 1) for size in shape) >= 2**63]
    if wrong:  # only of a tensor without values, which a size of 0 makes possible in any file
        raise _broken(argument, path, f"{shown(wrong[0])} has shape {shown(shapes[wrong[0]])}")
    return metadata, shapes


def _length_of_header(path: Path, argument: str) -> int:
    try:
        with path.open("rb") as start:
            return int.from_bytes(start.read(8), "little")
    except OSError as error:
        raise UsageError(
            f"`{argument}` must be a file that can be read, got {shown_name(path)} ({error.strerror}): check its "
            "permissions"
        ) from error


def _loads(text: str, path: Path, argument: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise _refusal(argument, path, "have a header in JSON", f" ({first_line(error)})") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is there twice")
    return values


def _check_format(header: Any, path: Path, argument: str) -> None:
    version = header.get("format") if isinstance(header, dict) else None
    if version != FORMAT:
        rule, remedy = f"have format {FORMAT}, which this version of condconv writes", "use the version that wrote it"
        raise _refusal(argument, path, rule, f" with format {shown(version)}", f"train again, or {remedy}")


def _broken(argument: str, path: Path, reason: object) -> UsageError:
    remedy = f"it is truncated or of another kind; {_REMEDY}"
    return _refusal(argument, path, "be a whole safetensors file", f" ({reason})", remedy)


def _damaged(argument: str, path: Path, what: str) -> UsageError:
    return _refusal(argument, path, "be as it was written", f", damaged in its {what}")


def _refusal(argument: str, path: Path, rule: str, found: str = "", remedy: str = _REMEDY) -> UsageError:
    return UsageError(f"`{argument}` must {rule}, got {shown_name(path)}{found}: {remedy}")
