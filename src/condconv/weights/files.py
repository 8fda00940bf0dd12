"""Read files of weights, of any format."""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condconv.errors import UsageError, require_extra, shown
from condconv.files.checkpoint_format import below, is_checkpoint, open_checkpoint
from condconv.files.paths import is_mostly_holes
from condconv.weights.archives import damaged_member, members_of
from condconv.weights.kinds import first_bytes, is_safetensors, why_not_weights

# What training scripts put beside the weights: their arguments, and figures of numpy's.
_SCALAR = np.float64(0).__reduce__()[0]  # what makes numpy's numbers, wherever this version of numpy keeps it
_PLAIN_VALUES: list[Any] = [
    *(argparse.Namespace, np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_BYTES = 8  # of an entry, at most
_FILES_OF_FOLDERS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
# How torch names what it would have to import.
_FOREIGN = re.compile(r"GLOBAL (\S+)|allowlisted via `add_safe_globals`,? but got (.+)")


def path_shown(path: str | Path) -> str:
    """Return a path for a message, shortened only if it is absurdly long."""
    return shown(str(path), 500)


def read_file(path: str | Path, most: int) -> Any:
    """Read a torch or safetensors file, or a folder in the layout of the Hugging Face hub.

    Pickles are read without running code in them.

    Args:
        path: The file or folder. The first bytes of a file decide its type, not its name.
        most: Maximum number of entries of a tensor, which bounds the memory that a sparse file can ask for.

    Returns:
        The content, with tensors on the CPU, in the file's order: a state dict, or mappings that contain some.

    Raises:
        UsageError: The file is missing, truncated, damaged or of another kind, or a tensor is too large.
        OSError: It cannot be opened.
        MissingExtraError: It is a safetensors file and safetensors is not installed.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in _FILES_OF_FOLDERS if (file / name).is_file()]
        if not found:
            raise UsageError(
                f"`path` must be a file of weights or a folder with {_FILES_OF_FOLDERS[0]}, got {path_shown(path)}: "
                "give the file itself"
            )
        file = found[0]
    if not file.is_file():
        raise UsageError(f"`path` must be an existing file of weights, got {path_shown(path)}: check the name")
    first = first_bytes(file)
    reason = why_not_weights(file, first)
    if reason is not None:
        raise UsageError(f"`path` must be a file of torch's or safetensors, got {path_shown(file)}: it is {reason}")
    if is_safetensors(first):
        return _read_safetensors(file, most)
    _check_holes(file, most)
    _check_archive(file, most)
    return _read_pickle(file)


def check_size(name: str, shape: Sequence[int], most: int, source: str) -> None:
    """Check the size of a tensor before memory is allocated.

    Raises:
        UsageError: It has too many entries.
    """
    if math.prod(max(size, 1) for size in shape) > most:  # a size of 0 does not make the others possible
        raise UsageError(
            f"`path` must hold weights of this network or one like it, got {source} with {shown(name)} of shape "
            f"{tuple(shape)}, larger than the whole network: give another file"
        )


def _read_safetensors(file: Path, most: int) -> Mapping[str, Any]:
    safetensors = require_extra("safetensors", "models")
    try:
        with safetensors.safe_open(file, framework="np") as opened:  # torch would map the tensors into memory at once
            if is_checkpoint(opened.metadata() or {}):
                return _read_checkpoint(file, most)
            for name in opened.offset_keys():
                check_size(name, opened.get_slice(name).get_shape(), most, path_shown(file))
        _check_holes(file, most)  # which many tensors of the right size may be
        with safetensors.safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.offset_keys()}
    except safetensors.SafetensorError as error:
        raise UsageError(
            f"`path` must be a whole safetensors file, got {path_shown(file)} ({error}): take another copy"
        ) from error


def _read_checkpoint(file: Path, most: int) -> Mapping[str, Any]:
    """Return the network of a checkpoint of `condconv train`, and the averaged network if there is one."""
    stored = open_checkpoint(file, argument="path")
    for name, shape in {**below("model", stored.shapes), **below("ema", stored.shapes)}.items():
        check_size(name, shape, most, path_shown(file))
    tensors = stored.read("model", "ema")
    return {"state_dict": below("model", tensors), "ema": below("ema", tensors)}


def _check_holes(file: Path, most: int) -> None:
    """Check that a file is not larger than weights of this network can be, unless the disk holds it.

    Raises:
        UsageError: It is.
    """
    size = file.stat().st_size
    if size > _BYTES * most and is_mostly_holes(file):
        raise UsageError(
            f"`path` must be a file of weights of this network or one like it, got {path_shown(file)} of "
            f"{size / 2**20:,.0f} MiB, most of which are holes: take another copy"
        )


def _check_archive(file: Path, most: int) -> None:
    """Check that a zip archive of torch holds what was written, and unpacks to hardly more than its size.

    Any other file, or an archive whose table of members is damaged, is left to torch to judge.

    Raises:
        UsageError: It does not; torch compresses nothing.
    """
    members = members_of(file)
    if members is None:
        return
    size, unpacked = file.stat().st_size, sum(each.file_size for each in members)
    if unpacked > max(size, _BYTES * most):
        raise UsageError(
            f"`path` must be a file as torch.save writes it, got {path_shown(file)} of {size / 2**20:.1f} MiB, which "
            f"would unpack to {unpacked / 2**20:.0f} MiB: take the file that was saved, not a compressed one"
        )
    damaged = damaged_member(file)
    if damaged is not None:
        raise UsageError(
            f"`path` must be as it was written, got {path_shown(file)}, damaged in {shown(damaged)}: take another copy"
        )


def _read_pickle(file: Path) -> Any:
    try:
        # Opened here, since torch judges a file that it opens by its suffix.
        with file.open("rb") as stream, torch.serialization.safe_globals(_PLAIN_VALUES):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # bytes that are no pickle can fail in any way
        foreign = _FOREIGN.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign is not None:
            raise UsageError(
                f"`path` must hold tensors and plain values only, got {path_shown(file)} with "
                f"{shown(foreign[1] or foreign[2], 120)[1:-1]}: loading it could run foreign code; save "
                "model.state_dict() where you trust the file"
            ) from error
        if "TorchScript" in str(error):
            raise UsageError(
                f"`path` must hold tensors by name, got {path_shown(file)}, which is a TorchScript archive: save "
                "torch.jit.load(...).state_dict()"
            ) from error
        reason = str(error).split("\n", 1)[0][:120]
        raise UsageError(
            f"`path` must be a whole file written by torch.save, got {path_shown(file)} ({reason}): it is truncated "
            "or of another kind; take another copy"
        ) from error
