"""The members of an elastic network, timed in turn and compared with the smallest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from condconv.lab.bench.contender import Conditions, Contender
from condconv.lab.bench.timing import Spread, ratio, time_by_turns

BATCHES = (1, 32)
"""Numbers of images in a call: one, and many."""


@dataclass(frozen=True)
class MemberTime:
    """How long a network takes for a batch.

    Attributes:
        milliseconds: Median time of a call.
        ratio: Time over the first network's, within each repetition.
    """

    milliseconds: float
    ratio: Spread


def time_members(
    networks: Sequence[nn.Module], image_shape: tuple[int, ...], repetitions: int
) -> list[dict[int, MemberTime]]:
    """Time networks in inference, in fp32 and channels_last, in turn, and compare each with the first.

    Args:
        networks: The smallest first; they run where their parameters are. They are copied.
        image_shape: `(C, H, W)` of the random images.
        repetitions: Measurements of each.

    Returns:
        For each network its times by the number of images, `BATCHES`.
    """
    device = str(next(networks[0].parameters()).device)
    found: list[dict[int, MemberTime]] = [{} for _ in networks]
    for batch in BATCHES:
        images = torch.randn(batch, *image_shape, generator=torch.Generator().manual_seed(0))
        calls = {
            str(number): Contender(network, (images,), Conditions(device=device), "channels_last")
            for number, network in enumerate(networks)
        }
        times = time_by_turns(calls, repetitions, cuda=device.startswith("cuda"))
        for number, own in enumerate(times.values()):
            found[number][batch] = MemberTime(1e3 * statistics.median(own), ratio(own, times["0"]))
    return found
