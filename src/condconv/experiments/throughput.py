"""Inference speed of several networks, measured by turns so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def inference_rates(
    networks: Mapping[str, nn.Module], images: Tensor, *, repetitions: int = 15, seconds: float = 0.1
) -> dict[str, tuple[float, ...]]:
    """Measure forward passes in inference mode.

    Args:
        networks: Networks in eval mode, on the device of `images`.
        images: One batch, `[B, C, H, W]`.
        repetitions: Measurements of each network.
        seconds: Least duration of one measurement; short forward passes are repeated to fill it.

    Returns:
        Images per second, one value a repetition, for each network.
    """
    with torch.inference_mode():
        for network in networks.values():
            _seconds(network, images, 3)  # warm-up: memory, thread pools, choices made at the first call
        passes = {name: max(1, round(seconds / _seconds(network, images, 1))) for name, network in networks.items()}
        rates: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(repetitions):
            for name, network in networks.items():
                rates[name].append(passes[name] * len(images) / _seconds(network, images, passes[name]))
    return {name: tuple(values) for name, values in rates.items()}


def _seconds(network: nn.Module, images: Tensor, passes: int) -> float:
    _wait(images)
    start = time.perf_counter()
    for _ in range(passes):
        network(images)
    _wait(images)
    return time.perf_counter() - start


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
