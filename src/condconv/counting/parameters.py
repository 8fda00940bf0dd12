"""How many parameters there are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Return the number of values in parameters, such as `model.parameters()`.

    A parameter that is given more than once, as by layers that share it, counts once. So the counts of two layers that
    share one add up to more than the count of both together.
    """
    return sum(each.numel() for each in {id(each): each for each in parameters}.values())
