"""Averaged weights: the names by which they are known, in files and inside one state dict.

Weights are averaged if a word of their name is one of `AVERAGED`:

| name in the file | who writes it |
| --- | --- |
| `params_ema` next to `params` | BasicSR, Real-ESRGAN |
| `state_dict_ema` | timm's training script |
| `model_ema` | torchvision's references, with `module.` and `n_averaged` inside (torch's `AveragedModel`); DeiT |
| `model_ema_state_dict`, `ema_model_state_dict`, `ema_state_dict`, `ema_model` | FixMatch's ports; many scripts |
| `ema` | RT-DETR, with `module` inside; many scripts |
| `model_avg` | icefall |
| `swa_state_dict`, `swa_model` | torchcontrib and scripts with `torch.optim.swa_utils` |
| `g_ema`, `netG_ema` | StyleGAN2's ports |
| `teacher` next to `student` | DINO, DINOv2, iBOT: the teacher is the student's average |
| `shadow` | classes that average only parameters, by name; buffers are those of the network |
| `callbacks` with such a name inside | callbacks of Lightning that average |
| `ema_model.`, `teacher.`, ... before names in one state dict | modules that keep their average as a child |
| `model_ema.` before names without dots | `LitEma` of latent diffusion |

Two frameworks write the averages under the usual name and the plain weights next to them: Lightning's `WeightAveraging`
(`state_dict`, `current_model_state`) and OpenMMLab's `EMAHook` (`state_dict`, `ema_state_dict`; before mmengine
`ema_backbone_conv1_weight` in one state dict).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

AVERAGED = frozenset({"ema", "emas", "swa", "avg", "average", "averaged", "teacher", "shadow", "polyak"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_COUNTER = "n_averaged"  # of torch's AveragedModel


@dataclass(frozen=True)
class Entry:
    """Weights inside a file.

    Attributes:
        name: Their key in the file; empty if the file is a state dict.
        tensors: By their names in the file.
    """

    name: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """The weights inside a file.

    Attributes:
        plain: Those that were trained; `None` if there are none.
        averaged: Those that were averaged; `None` if there are none.
        others: Names of further averages.
    """

    plain: Entry | None = None
    averaged: Entry | None = None
    others: tuple[str, ...] = ()


def words(name: str) -> set[str]:
    """Return the words of a name in lower case, for any way of joining them."""
    return {word.lower() for word in _WORD.findall(name)}


def told_apart(tensors: dict[str, Tensor], path: str, has: Callable[[str], bool]) -> Found:
    """Tell plain and averaged tensors of one state dict apart.

    Args:
        tensors: By name.
        path: Key of the state dict in its file.
        has: As in `condconv.weights.entries.find_weights`.
    """
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
    """Return the prefix that marks a tensor's name as an average's, or an empty text."""
    parts = name.split(".")
    for at, part in enumerate(parts[:2]):  # under the name of a wrapper too
        if at + 1 < len(parts) and words(part) & AVERAGED and not has(".".join(parts[at:])):
            return ".".join(parts[: at + 1]) + "."
    return "ema_" if len(parts) == 1 and name.startswith("ema_") and not has(name) else ""


def _with_dots(part: dict[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return averages by the names of what they average, also if they were saved as buffers, in names without dots."""
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
