"""Files of TensorFlow checkpoints: telling one by its name, and reading its variables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv.errors import UsageError, few, require_extra, shown_name
from condconv.files.paths import is_special, read_text
from condconv.weights.files import check_size

_FILE = re.compile(r"\.(?:index|data-[0-9]{5}-of-[0-9]{5})$")
_LONGEST_STATE = 2**20  # bytes of the file that names the latest checkpoint, and the few before it
_LATEST = re.compile(r'^model_checkpoint_path:\s*"(.*)"', re.MULTILINE)


def is_tensorflow_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell by the names of files whether a path is a TensorFlow checkpoint; TensorFlow is not needed.

    Args:
        path: What may be a prefix (`model.ckpt`, with `model.ckpt.index` next to it), one of the checkpoint's own
            files, or a folder with a `checkpoint` file or exactly one `.index` file.

    Returns:
        Whether `read_tensorflow_checkpoint` should be tried. The single file of TensorFlow's first format is not known.
    """
    path = Path(path)
    if path.is_dir():
        return (path / "checkpoint").is_file() or len(list(path.glob("*.index"))) == 1
    return Path(f"{path}.index").is_file() or (path.is_file() and _FILE.search(path.name) is not None)


def read_tensorflow_checkpoint(path: str | os.PathLike[str], most: int = 2**40) -> dict[str, NDArray[Any]]:
    """Read all numeric variables of a TensorFlow checkpoint.

    Args:
        path: As in `is_tensorflow_checkpoint`. Of a folder with several checkpoints the one that its `checkpoint` file
            names is read, whatever folder that file gives.
        most: Most entries of a variable.

    Returns:
        Name to array, sorted by name, of the shapes and dtypes stored. Strings are left out.

    Raises:
        UsageError: There is no checkpoint, it is damaged, a variable is too large, or the folder has several and does
            not name one.
        MissingExtraError: TensorFlow is not installed.
    """
    prefix = _find_prefix(Path(path))
    odd = [each for each in prefix.parent.iterdir() if each.name.startswith(f"{prefix.name}.") and is_special(each)]
    if odd:  # which TensorFlow would read, or wait for, without end
        raise UsageError(
            f"`path` must be a TensorFlow checkpoint of regular files, got {shown_name(odd[0])}, a pipe or a device: "
            "copy its .index and .data files again"
        )
    with _quiet():
        tf: Any = require_extra("tensorflow", "tensorflow")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        dtypes = reader.get_variable_to_dtype_map()
        for name, shape in reader.get_variable_to_shape_map().items():
            check_size(name, shape, most, repr(str(prefix)))
        return {name: np.asarray(reader.get_tensor(name)) for name in sorted(dtypes) if dtypes[name] != tf.string}
    except UsageError:
        raise
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"`path` must be a whole TensorFlow checkpoint, got {str(prefix)!r} ({error}): copy its .index and "
            ".data files again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Let TensorFlow, which reads the variable when it is imported, log only errors."""
    before = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        yield
    finally:
        if before is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]


def _find_prefix(path: Path) -> Path:
    """Return the prefix of the checkpoint that a path means."""
    if not path.is_dir():
        prefix = path.with_name(_FILE.sub("", path.name))
        if not Path(f"{prefix}.index").is_file():
            raise UsageError(
                f"`path` must be a TensorFlow checkpoint, got {str(path)!r}: there is no file {prefix}.index; give "
                "the prefix that the .index and .data files share"
            )
        return prefix
    names = sorted(_FILE.sub("", file.name) for file in path.glob("*.index"))
    if len(names) == 1:
        return path / names[0]
    state = path / "checkpoint"
    latest = _LATEST.search(_text_of(state)) if state.is_file() else None
    # The file may give the folder in which the checkpoint was written.
    name = re.split(r"[/\\]", latest.group(1))[-1] if latest else None
    if name in names:
        return path / str(name)
    held = f"{len(names)} ({few(names)}): give the prefix of one" if names else "none: no .index file is in it"
    raise UsageError(f"`path` must be a folder with one TensorFlow checkpoint, got {str(path)!r} with {held}")


def _text_of(state: Path) -> str:
    try:
        return read_text(state, _LONGEST_STATE)
    except (OSError, ValueError):  # so it names no checkpoint
        return ""
