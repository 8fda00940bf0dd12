"""Check the classes that the recorder takes with each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condconv.errors import UsageError


def check_whole_numbers(**given: Any) -> None:
    """Check that each argument, by its name, is None or a tensor `[B]` of integers.

    Raises:
        UsageError: One is something else, as the targets of mixup are.
    """
    for name, values in given.items():
        if values is None:
            continue
        rule = f"`{name}` must be a tensor [B] of whole numbers, got "
        if not isinstance(values, Tensor):
            raise UsageError(f"{rule}{type(values).__name__}: give a tensor, such as torch.tensor([0, 2])")
        if values.dim() != 1 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise UsageError(
                f"{rule}{values.dtype} of shape {tuple(values.shape)}: give the class of each image, for one-hot rows "
                "targets.argmax(1); images that mixup or cutmix mixed have no single class, so record unmixed ones"
            )


def known_classes(targets: Tensor | None, seen: Tensor, class_names: Sequence[str] | None) -> Tensor | None:
    """Return the classes of the examples that count, int64 on the CPU; None for examples without classes.

    Args:
        targets: Integers `[B]`, or None.
        seen: Which examples count, `[B]` bool on the CPU.
        class_names: Names of the classes; None for examples without.

    Raises:
        UsageError: There are names and no targets, or a target without a name.
    """
    if class_names is None:
        return None
    if targets is None:
        raise UsageError("`targets` must be given with class names, got None: give class_names=None for no classes")
    known = targets.detach().cpu().long()[seen]
    if len(known) and int(known.max()) >= len(class_names):
        raise UsageError(
            f"`targets` must lie below the number of classes, {len(class_names)}, got {int(known.max())}: "
            "name all the classes"
        )
    return known
