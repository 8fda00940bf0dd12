"""Reading weights from files: whatever the file is, tensors by name."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condconv.errors import UsageError, require_extra
from condconv.weights.kinds import is_safetensors, why_not_weights

# Entries under which checkpoints of training scripts keep the weights; averaged ones first where they are asked for.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
# What training scripts put beside the weights: their arguments, and figures of numpy's.
_SCALAR = np.float64(0).__reduce__()[0]  # what makes numpy's numbers, wherever this version of numpy keeps it
_PLAIN_VALUES: list[Any] = [
    *(argparse.Namespace, np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_FILES_OF_FOLDERS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
# How torch names what it would have to import.
_FOREIGN = re.compile(r"GLOBAL (\S+)|allowlisted via `add_safe_globals`,? but got (.+)")


def read_state_dict(path: str | Path, *, ema: bool = True) -> dict[str, Tensor]:
    """Read the weights of a torch or safetensors file, or of a folder as the Hugging Face hub has them.

    Pickles are read without running code of theirs.

    Args:
        path: The file or folder; what a file is, its first bytes tell, not its name.
        ema: Take averaged weights where a checkpoint has both.

    Returns:
        Tensors on the CPU by name, in the file's order.

    Raises:
        UsageError: The file is missing, truncated, of another kind, or holds no weights.
        OSError: It cannot be opened.
        MissingExtraError: It is a safetensors file and safetensors is not installed.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in _FILES_OF_FOLDERS if (file / name).is_file()]
        if not found:
            raise UsageError(
                f"`path` must be a file of weights or a folder with {_FILES_OF_FOLDERS[0]}, got {str(path)!r}"
            )
        file = found[0]
    if not file.is_file():
        raise UsageError(f"`path` must be an existing file of weights, got {str(path)!r}")
    reason = why_not_weights(file)
    if reason is not None:
        raise UsageError(f"`path` must be a file of torch's or safetensors, got {str(file)!r}: it is {reason}")
    return tensors_in(_read_safetensors(file) if is_safetensors(file) else _read_pickle(file), repr(str(path)), ema=ema)


def tensors_in(loaded: Any, source: str, *, ema: bool = True) -> dict[str, Tensor]:
    """Return the tensors by name inside what a file holds, or a state dict as it is.

    Args:
        loaded: A mapping, or mappings in mappings; what else is there is left out.
        source: What to call it in messages.
        ema: Take averaged weights where there are both.

    Returns:
        Tensors, dense, on their devices.

    Raises:
        UsageError: There are none, or one has no values.
    """
    state = _unwrap(loaded, ema)
    if not state:
        names = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else None
        kind = type(loaded).__name__ if names is None else f"a mapping with {names}" if names else "an empty mapping"
        raise UsageError(f"`path` must hold tensors by name, got {source} with {kind[:200]}: save model.state_dict()")
    for name, tensor in state.items():
        if tensor.is_meta or tensor.is_quantized:
            what = "no values, on the meta device" if tensor.is_meta else f"quantized ones, {tensor.dtype}"
            raise UsageError(
                f"`path` must hold values, got {source} with {what}, in {name!r}: save the network before it is "
                "emptied or quantized"
            )
    return {name: tensor if tensor.layout == torch.strided else tensor.to_dense() for name, tensor in state.items()}


def _read_safetensors(file: Path) -> Mapping[str, Any]:
    safetensors = require_extra("safetensors", "models")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.offset_keys()}
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise UsageError(
            f"`path` must be a whole safetensors file, got {str(file)!r} ({error}): take another copy"
        ) from error
    if "condconv" not in metadata:
        return tensors
    # A checkpoint of `condconv train` keeps the optimizer beside the network, and the averaged network if there is one.
    return {"state_dict": _below(tensors, "model."), "ema": _below(tensors, "ema.")}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


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
                f"`path` must hold tensors and plain values only, got {str(file)!r} with "
                f"{(foreign[1] or foreign[2])[:120]}: loading that could run code of a stranger's; save "
                "model.state_dict() where you trust the file"
            ) from error
        if "TorchScript" in str(error):
            raise UsageError(
                f"`path` must hold tensors by name, got {str(file)!r}, which is a TorchScript archive: save "
                "torch.jit.load(...).state_dict()"
            ) from error
        reason = str(error).split("\n", 1)[0][:120]
        raise UsageError(
            f"`path` must be a whole file written by torch.save, got {str(file)!r} ({reason}): it is truncated or of "
            "another kind; take another copy"
        ) from error


def _unwrap(loaded: Any, ema: bool) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        return {}
    for name in (*(_AVERAGED if ema else ()), *_PLAIN):
        if inner := _unwrap(loaded.get(name), ema):
            return inner
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    tensors.pop("n_averaged", None)  # the counter of torch's AveragedModel
    return tensors
