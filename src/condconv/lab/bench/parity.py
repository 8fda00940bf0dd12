"""Check before timing: outputs and gradients against the reference implementation in fp64."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condconv.lab.bench.cases import Case, LayerCase, Trio, layers_of
from condconv.lab.bench.contender import DTYPES, LAYOUTS, Conditions, Contender
from condconv.nn.conditional import conditional_layers
from condconv.ops.implementations import REFERENCE

# In fp64 a whole batch of a network takes minutes; its first examples go through the same layers.
_LAYER_EXAMPLES = 32
_NETWORK_EXAMPLES = 4
_TIMES_REFERENCE = 4.0
_ROUNDINGS = 8
_ROUNDINGS_OF_SUMS = 32


@dataclass(frozen=True)
class Parity:
    """How far one tensor is from the reference in fp64, and how far it may be.

    Attributes:
        tensor: "output", or whose gradient.
        error: Norm of the difference over the norm of the reference.
        allowed: Four times the error of the reference itself in the precision and layout that are timed, and at least
            8 roundings in that precision, or 32 in fp32, in which sums are kept.
    """

    tensor: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Return whether the error is allowed; one that is not a number is not."""
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """Return the error over what is allowed."""
        return math.inf if math.isnan(self.error) else self.error / self.allowed

    def __str__(self) -> str:
        """Describe it in one sentence."""
        return f"{self.tensor} differs from the reference by {self.error:.1e}, allowed {self.allowed:.1e}"


def check_parity(case: Case, trio: Trio, conditions: Conditions) -> Parity:
    """Compare a conditional layer or network, run as it will be timed in each layout, with the reference in fp64.

    Of a layer up to 32 examples are compared, of a network 4. A network's gradients are compared as one vector: with
    random weights and batch norm some of its tensors are nothing but rounding. So in training its distinct conditional
    layers are compared one by one, too.

    Args:
        case: What is compared.
        trio: Of the case; its `ours` is compared.
        conditions: As it will be timed.

    Returns:
        The worst tensor.
    """
    is_layer, training = isinstance(case, LayerCase), conditions.mode == "training"
    examples = min(len(trio.inputs[0]), _LAYER_EXAMPLES if is_layer else _NETWORK_EXAMPLES)
    some = tuple(each[:examples] for each in trio.inputs)
    reference = copy.deepcopy(trio.ours)
    for layer in conditional_layers(reference).values():
        layer.impl = REFERENCE.name
    eager = Conditions(conditions.mode, conditions.dtype, conditions.device)
    rounded = {layout: _results(reference, some, eager, layout) for layout in LAYOUTS}
    if not training:  # the exact result is that of the stored parameters, which are rounded here
        reference, some = (
            reference.to(DTYPES[conditions.dtype]),
            tuple(each.to(DTYPES[conditions.dtype]) for each in some),
        )
    exact = _results(reference, some, eager, dtype=torch.float64)
    found = []
    for layout in LAYOUTS:
        # In evaluation mode an example's output is its own: the batch that is timed can be run, and a part compared.
        results = _results(trio.ours, some if training else trio.inputs, conditions, layout)
        results["output"] = results["output"][:examples]
        for name, expected in exact.items():
            # In its own layout: torch's batch norm alone rounds ten times worse in channels_last.
            allowed = _allowed(_difference(rounded[layout][name], expected), conditions.dtype)
            found.append(Parity(name, _difference(results.get(name), expected), allowed))
    if not isinstance(case, LayerCase) and training:
        for each in layers_of(case.network):  # what deltas are computed by, too
            worst = check_parity(each, each.make(examples), conditions)
            found.append(Parity(f"{worst.tensor} of {each.name}", worst.error, worst.allowed))
    return max(found, key=lambda each: each.excess)


def _allowed(error: float, dtype: str) -> float:
    roundings = (_ROUNDINGS * torch.finfo(DTYPES[dtype]).eps, _ROUNDINGS_OF_SUMS * torch.finfo(torch.float32).eps)
    return max(_TIMES_REFERENCE * error, *roundings)


def _results(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    conditions: Conditions,
    layout: str = "contiguous",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    if conditions.compiled:
        torch.compiler.reset()  # or torch gives up compiling a class after eight shapes
    contender = Contender(module, inputs, conditions, layout, dtype)
    results = contender.results()
    if not contender.is_network or not contender.training:
        return results
    output = results.pop("output")
    return {"output": output, "gradient": torch.cat([each.flatten() for each in results.values()])}


def _difference(found: Tensor | None, exact: Tensor) -> float:
    if found is None or found.shape != exact.shape:
        return math.nan
    return float((found - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float64).tiny))
