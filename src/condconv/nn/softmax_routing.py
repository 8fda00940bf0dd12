"""Softmax routing and its temperature, which a checkpoint must carry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from condconv.nn.routing import Float32Linear, RoutingFunction


class SoftmaxRouting(RoutingFunction):
    """`softmax(Linear(pool(x)) / temperature)`: weights that sum to one.

    A high temperature early keeps all experts in training; annealing it lets them part. The temperature and where its
    schedule stands are buffers: a checkpoint loaded elsewhere goes on, or predicts, exactly as it would have.

    Args:
        in_channels: C of the input.
        num_experts: E.
        temperature: At the start; positive.
        final_temperature: At the end of the schedule; `None` to keep `temperature`.
        annealing_steps: Calls of `anneal_` (one an optimizer update) over which it falls linearly.
        **options: Of `RoutingFunction`.

    Raises:
        ValueError: A temperature is not positive, or a final temperature comes without steps (or the reverse).

    With SGD the experts need a higher learning rate: at weights of 1 / E the mixture moves 1 / E as far in a step as a
    static kernel does (`condconv train --expert-lr-scale`; `docs/routing.md`).

    Source:
        CondConv, Table 3 ("softmax", temperature 1); annealing from 30 to 1: Chen et al., "Dynamic Convolution",
        CVPR 2020, section 3.3.

    Example:
        >>> routing = SoftmaxRouting(16, 4, temperature=30.0, final_temperature=1.0, annealing_steps=100)
        >>> routing.anneal_(50)
        >>> float(routing.temperature)
        15.5
    """

    temperature: Tensor
    initial_temperature: Tensor
    final_temperature: Tensor
    annealing_steps: Tensor
    annealing_step: Tensor

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        final_temperature: float | None = None,
        annealing_steps: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, num_experts, **options)
        for name, value in (("temperature", temperature), ("final_temperature", final_temperature)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        if annealing_steps < 0 or (final_temperature is None) != (annealing_steps == 0):
            raise ValueError(
                "annealing_steps must be positive with a final_temperature and 0 without, got "
                f"annealing_steps={annealing_steps!r}, final_temperature={final_temperature!r}"
            )
        device, dtype = options.get("device"), options.get("dtype")
        self.fc = Float32Linear(in_channels, num_experts, device=device, dtype=dtype)
        self._start: dict[str, float | int] = {
            "temperature": float(temperature),
            "initial_temperature": float(temperature),
            "final_temperature": float(temperature if final_temperature is None else final_temperature),
            "annealing_steps": annealing_steps,
            "annealing_step": 0,
        }
        for name, value in self._start.items():
            self.register_buffer(name, torch.tensor(value, device=device))

    def reset_parameters(self) -> None:
        """Begin the schedule again, in place; tensors that have had no values, as on the meta device, get theirs."""
        with torch.no_grad():
            for name, value in self._start.items():
                getattr(self, name).fill_(value)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Return weights `[B, E]` that sum to one."""
        logits = self.fc(pooled)
        return (logits / self.temperature.to(logits.dtype)).softmax(1)

    @torch.no_grad()
    def anneal_(self, steps: int = 1) -> None:
        """Advance the schedule in place; a no-op at its end or without one."""
        self.annealing_step.copy_((self.annealing_step + steps).clamp(max=self.annealing_steps))
        done = self.annealing_step / self.annealing_steps.clamp(min=1)
        self.temperature.copy_(self.initial_temperature.lerp(self.final_temperature, done.to(self.temperature.dtype)))


def anneal_(model: nn.Module, steps: int = 1) -> None:
    """Advance the temperature schedule of every `SoftmaxRouting` of a model, in place.

    Call it after each optimizer update. Harmless where nothing anneals.

    Args:
        model: Any module.
        steps: Updates done since the last call.
    """
    for module in model.modules():
        if isinstance(module, SoftmaxRouting):
            module.anneal_(steps)
