"""Softmax routing and its temperature, which checkpoints contain."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import UsageError, shown
from condconv.nn.routing_function import RoutingFunction
from condconv.ops.scalars import number, whole

_TRAINED = 10
"""Changes of a weight from `train()` to `eval()` that are taken for training; loading weights makes one or two."""


class SoftmaxRouting(RoutingFunction):
    """`softmax(Linear(trunk(x)) / temperature)`: weights that sum to one.

    A high temperature early in training gives all experts a gradient; lowering it lets them diverge. The temperature
    and the position of its schedule are buffers, so a checkpoint resumes and predicts exactly. A training loop has to
    call `anneal_`; if it does not, `eval()` warns once.

    Args:
        in_channels: C of the input.
        num_experts: Number of experts, E.
        temperature: At the start; positive.
        final_temperature: At the end of the schedule; `None` to keep `temperature`.
        annealing_steps: Calls of `anneal_` (one per optimizer update) over which it falls linearly.
        **options: Of `RoutingFunction`.

    Raises:
        UsageError: A temperature is not positive, or a final temperature comes without steps (or the reverse).

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
        temperature = _temperature("temperature", temperature)
        final = temperature if final_temperature is None else _temperature("final_temperature", final_temperature)
        annealing_steps = whole("annealing_steps", annealing_steps)
        if (final_temperature is None) != (annealing_steps == 0):
            raise UsageError(
                "`annealing_steps` must be positive with a final_temperature and 0 without, got "
                f"{annealing_steps} with final_temperature={shown(final_temperature)}: give both or neither"
            )
        device = options.get("device")
        self.fc = self.head()
        self._start: dict[str, float | int] = {
            "temperature": temperature,
            "initial_temperature": temperature,
            "final_temperature": final,
            "annealing_steps": annealing_steps,
            "annealing_step": 0,
        }
        for name, value in self._start.items():
            self.register_buffer(name, torch.tensor(value, device=device))
        self._trained_from: int | None = None  # of the weight when training began; `None` to look no longer
        self._watched = annealing_steps > 0 and self.mixes

    def train(self, mode: bool = True) -> SoftmaxRouting:
        """Set the mode; warn once if the weights were trained but the temperature is still that of the start."""
        # Seen here and not in `forward`, which is compiled and exported: an optimizer changes the weight in place.
        weight = self.fc.weight if self._watched else None
        if weight is None or weight.is_meta or weight.is_inference():
            pass
        elif mode:
            self._trained_from = weight._version
        elif self._trained_from is not None and weight._version - self._trained_from >= _TRAINED:
            self._watched = False
            if int(self.annealing_step) == 0:
                warnings.warn(
                    f"SoftmaxRouting was trained at its first temperature, {float(self.temperature):g}: its schedule "
                    "moves when condconv.nn.anneal_(model) is called, once after each optimizer step; timm's scripts "
                    "do that under `python -m condconv.models.with_timm`",
                    stacklevel=2,
                )
        return super().train(mode)

    def extra_repr(self) -> str:
        """Describe the sizes and the present temperature in `repr`."""
        if self.temperature.is_meta or type(self.temperature) is not Tensor:  # it has no value to show
            return super().extra_repr()
        schedule = ""
        if int(self.annealing_steps):
            schedule = (
                f", to {float(self.final_temperature):g} in {int(self.annealing_steps)} calls of anneal_, "
                f"{int(self.annealing_step)} done"
            )
        return f"{super().extra_repr()}, temperature={float(self.temperature):g}{schedule}"

    def reset_parameters(self) -> None:
        """Restart the schedule, in place; tensors without values, as from the meta device, get theirs."""
        with torch.no_grad():
            for name, value in self._start.items():
                getattr(self, name).fill_(value)

    def weigh(self, code: Tensor) -> Tensor:
        """Return weights `[B, E]` that sum to one."""
        logits = self.fc(code)
        return (logits / self.temperature.to(logits.dtype)).softmax(1)

    @torch.no_grad()
    def anneal_(self, steps: int = 1) -> None:
        """Advance the schedule in place; does nothing at its end or without a schedule.

        Raises:
            UsageError: `steps` is not a whole number of at least 0.
        """
        steps = whole("steps", steps)
        self.annealing_step.copy_((self.annealing_step + steps).clamp(max=self.annealing_steps))
        done = self.annealing_step / self.annealing_steps.clamp(min=1)
        self.temperature.copy_(self.initial_temperature.lerp(self.final_temperature, done.to(self.temperature.dtype)))


def anneal_(model: nn.Module, steps: int = 1) -> None:
    """Advance the temperature schedule of every `SoftmaxRouting` of a model, in place.

    Call it once after each optimizer update; `condconv train` does, and so do timm's scripts under
    `python -m condconv.models.with_timm`. It does nothing if the model has no annealed routing.

    Args:
        model: Any module.
        steps: Updates done since the last call.

    Raises:
        UsageError: `steps` is not a whole number of at least 0, or `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"`model` must be a torch.nn.Module, got {shown(model)}: give the network itself")
    steps = whole("steps", steps)
    for module in model.modules():
        if isinstance(module, SoftmaxRouting):
            module.anneal_(steps)


def _temperature(name: str, value: float) -> float:
    remedy = "1 is an ordinary softmax, a higher one is flatter"
    return number(name, value, "above 0 and finite", lambda degrees: 0 < degrees < math.inf, remedy)
