"""Where the files of training scripts keep weights: under which names, plain and averaged.

This is the one place that knows these names. Weights are averaged if a word of their name is one of `AVERAGED`:

| name in the file | who writes it |
| --- | --- |
| `params_ema` beside `params` | BasicSR, Real-ESRGAN |
| `state_dict_ema` | timm's training script |
| `model_ema` | torchvision's references, with `module.` and `n_averaged` inside (torch's `AveragedModel`); DeiT |
| `model_ema_state_dict`, `ema_model_state_dict`, `ema_state_dict`, `ema_model` | FixMatch's ports; many scripts |
| `ema` | RT-DETR, with `module` inside; many scripts |
| `model_avg` | icefall |
| `swa_state_dict`, `swa_model` | torchcontrib and scripts with `torch.optim.swa_utils` |
| `g_ema`, `netG_ema` | StyleGAN2's ports |
| `teacher` beside `student` | DINO, DINOv2, iBOT: the teacher is the student's average |
| `shadow` | classes that keep an average of parameters alone, by name; buffers are those of the network |
| `callbacks` with such a name inside | callbacks of Lightning that average |
| `ema_model.`, `teacher.`, ... before names in one state dict | modules that keep their average as a child |
| `model_ema.` before names without dots | `LitEma` of latent diffusion |

Two frameworks write the averages under the usual name and the plain weights beside them: Lightning's `WeightAveraging`
(`state_dict`, `current_model_state`) and OpenMMLab's `EMAHook` (`state_dict`, `ema_state_dict`; before mmengine
`ema_backbone_conv1_weight` in one state dict).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

AVERAGED = frozenset({"ema", "emas", "swa", "avg", "average", "averaged", "teacher", "shadow", "polyak"})
PLAIN = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "net_state_dict", "weights"),
    *("params", "student", "module", "generator"),
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_COUNTER = "n_averaged"  # of torch's AveragedModel


@dataclass(frozen=True)
class Entry:
    """Weights inside a file.

    Attributes:
        name: Under which they stand; empty where the file is a state dict.
        tensors: By their names there.
    """

    name: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """The weights inside a file, plain and averaged; `None` where there are none."""

    plain: Entry | None = None
    averaged: Entry | None = None


def words(name: str) -> set[str]:
    """Return the words of a name in small letters, however they are put together."""
    return {word.lower() for word in _WORD.findall(name)}


def find_weights(loaded: Any, has: Callable[[str], bool]) -> Found:
    """Return the weights inside what a file holds.

    Args:
        loaded: A mapping, or mappings in mappings; what else is there is left out.
        has: Whether names of the network's tensors end so; such names are not taken for an average's.
    """
    return _find(loaded, "", has)


def holders(loaded: Any) -> list[str]:
    """Return the names under which something has tensors by name."""
    if not isinstance(loaded, Mapping):
        return []
    return [str(key) for key, value in loaded.items() if isinstance(value, Mapping) and _tensors(value)]


def _find(loaded: Any, path: str, has: Callable[[str], bool]) -> Found:
    if not isinstance(loaded, Mapping):
        return Found()
    if (swapped := _swapped(loaded)) is not None:
        averaged, plain = (_find(loaded[key], f"{path}{key}.", has) for key in swapped)
        return Found(plain.plain or plain.averaged, averaged.plain or averaged.averaged)
    averages = list(_averages(loaded, path, has))
    plains = []
    for key in PLAIN:
        found = _find(loaded.get(key), f"{path}{key}.", has)
        averages += [found.averaged] if found.averaged else []
        plains += [found.plain] if found.plain else []
    if not plains and (tensors := _tensors(loaded)):
        found = _apart(tensors, path, has)
        averages += [found.averaged] if found.averaged else []
        plains += [found.plain] if found.plain else []
    if not plains and not averages:
        inner = [(key, value) for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Mapping)]
        others = [found for key, value in inner if (found := _find(value, f"{path}{key}.", has)) != Found()]
        return others[0] if len(others) == 1 else Found()
    return Found(next(iter(plains), None), next(iter(averages), None))


def _averages(loaded: Mapping[Any, Any], path: str, has: Callable[[str], bool]) -> Iterator[Entry]:
    """Yield what stands under names of averages, also among the states of callbacks."""
    for key, value in loaded.items():
        if not isinstance(value, Mapping):
            continue
        if key == "callbacks":
            for callback, state in value.items():
                found = _find(state, f"{path}{key}.{callback}.", has)
                if found.averaged or (found.plain and words(str(callback)) & AVERAGED):
                    yield found.averaged or found.plain  # type: ignore[misc]
        elif words(str(key)) & AVERAGED:
            found = _find(value, f"{path}{key}.", has)
            entry = found.plain or found.averaged
            if entry is not None and any(tensor.dim() for tensor in entry.tensors.values()):  # not a counter alone
                yield entry


def _swapped(loaded: Mapping[Any, Any]) -> tuple[str, str] | None:
    """Return the keys of averaged and of plain weights in files that have the averaged ones under the usual name."""
    if {"state_dict", "current_model_state", "averaging_state"} <= loaded.keys():  # Lightning's WeightAveraging
        return "state_dict", "current_model_state"
    backup = loaded.get("ema_state_dict")
    if "state_dict" in loaded and isinstance(backup, Mapping) and "steps" in backup:  # OpenMMLab's EMAHook
        return "state_dict", "ema_state_dict"
    return None


def _tensors(loaded: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _apart(tensors: dict[str, Tensor], path: str, has: Callable[[str], bool]) -> Found:
    """Tell plain and averaged tensors of one state dict apart."""
    if _COUNTER in tensors and not has(_COUNTER):  # the whole is torch's AveragedModel
        rest = {name: tensor for name, tensor in tensors.items() if name != _COUNTER}
        return Found(averaged=Entry(path.rstrip(".") or "module", rest))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix = _prefix(name, has)
        if prefix:
            parts.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    for prefix, part in parts.items():
        plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        averaged = _with_dots({name: tensor for name, tensor in part.items() if name != _COUNTER}, plain)
        if averaged and 4 * len(averaged) >= len(plain):  # not a layer that is called so
            swapped = prefix.endswith("ema_")  # OpenMMLab's hook before mmengine keeps the plain ones under that name
            entries = Entry(path.rstrip("."), plain), Entry(f"{path}{prefix}".rstrip("."), averaged)
            one, other = reversed(entries) if swapped else entries
            return Found(one if one.tensors else None, other)
    return Found(plain=Entry(path.rstrip("."), tensors))


def _prefix(name: str, has: Callable[[str], bool]) -> str:
    """Return what stands before the name of a tensor and says that it is an average, or an empty text."""
    parts = name.split(".")
    for at, part in enumerate(parts[:2]):  # under the name of a wrapper too
        if at + 1 < len(parts) and words(part) & AVERAGED and not has(".".join(parts[at:])):
            return ".".join(parts[: at + 1]) + "."
    return "ema_" if len(parts) == 1 and name.startswith("ema_") and not has(name) else ""


def _with_dots(part: dict[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return averages under the names of what they average, where these were made names of buffers, without dots."""
    if not plain or any("." in name for name in part):
        return part
    prefixes = {""} | {name[: name.index(".") + 1] for name in plain if "." in name}
    for prefix in sorted(prefixes):
        for stand_in in ("", "_"):
            whole = {name.removeprefix(prefix).replace(".", stand_in): name for name in plain}
            found = {whole[name]: tensor for name, tensor in part.items() if name in whole}
            if all(name in whole for name, tensor in part.items() if tensor.dim()):
                return found
    return part
