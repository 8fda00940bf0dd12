"""Run a written file, and compare it with its network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condconv.errors import ExportError, UsageError, first_line, shown
from condconv.nn import ConstantRouting
from condconv.nn.block_routing import routing_functions

_TIMES_EAGER = 10.0
_ROUNDINGS = (
    256  # runtimes approximate exp and tanh: ONNX Runtime's tanh was seen 60 off; wrong routing is 1e4 and more
)
_LEAST_ALLOWED = _ROUNDINGS * torch.finfo(torch.float32).eps
_VISIBLE = 10.0

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """What a file has to compute.

    Attributes:
        inputs: `[N, ...]`, all examples that are tried; they differ in contrast and brightness, so that they are routed
            differently.
        outputs: `[N, ...]`, of the network in fp64.
        allowed: The largest error of an example, norm of the difference over norm of the output: ten times that of
            the network in fp32, or 256 roundings.
        blind: Why wrong routing would pass, or `None` if it would not.
    """

    inputs: Tensor
    outputs: Tensor
    allowed: float
    blind: str | None = None


def worst_error(found: Tensor, exact: Tensor) -> float:
    """Return the largest error of an example, or infinity if a value is not finite.

    Args:
        found: `[B, ...]`.
        exact: The same shape, fp64.
    """
    return float(_errors(found, exact).max())


def _errors(found: Tensor, exact: Tensor) -> Tensor:
    difference = (found.double() - exact).flatten(1).norm(dim=1)
    size = exact.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(difference.isfinite(), difference / size, torch.inf)


def varied_inputs(example: Tensor, count: int) -> Tensor:
    """Return `[count, ...]`: noise; each example has its own contrast, brightness and colour.

    Args:
        example: `[B, ...]`; its shape without the batch, and its dtype, are used.
        count: Number of examples.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    ones = (1,) * (example.dim() - 2)
    contrast = draw(count, *(1,) * (example.dim() - 1)).exp()
    return (draw(count, *example.shape[1:]) * contrast + draw(count, example.shape[1], *ones)).to(example.dtype)


def check_output(output: Any, batch: int) -> None:
    """Check that a network returns one tensor `[B, ...]`.

    Raises:
        UsageError: With the remedy.
    """
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != batch:
        kind = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UsageError(
            f"`model` must return one tensor [B, ...], got {kind}: wrap it in a module that returns the one you need"
        )


@torch.no_grad()
def make_reference(model: nn.Module, inputs: Tensor) -> Reference:
    """Run a network in fp32 and fp64, and with averaged routing to see whether the check would notice.

    Args:
        model: In evaluation mode, fp32, on the CPU; does not change.
        inputs: `[N, ...]`.

    Raises:
        UsageError: The network does not return one tensor with the batch in front.
    """
    rounded = model(inputs)
    check_output(rounded, len(inputs))
    with _in_fp64(model):
        exact = model(inputs.double())
    if not (exact.isfinite().all() and rounded.isfinite().all()):  # or the error allowed would be infinite
        raise UsageError("`model` must give finite outputs, got inf or nan for noise: check its weights")
    allowed = max(_TIMES_EAGER * worst_error(rounded, exact), _LEAST_ALLOWED)
    return Reference(inputs, exact, allowed, _why_blind(model, inputs, exact, allowed))


@contextmanager
def _in_fp64(model: nn.Module) -> Iterator[None]:
    """Let a model compute in fp64 inside the block; then its tensors have their dtypes again, and the same values."""
    dtypes = [tensor.dtype for tensor in (*model.parameters(), *model.buffers())]
    model.double()
    try:
        yield
    finally:
        for tensor, dtype in zip((*model.parameters(), *model.buffers()), dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def _why_blind(model: nn.Module, inputs: Tensor, exact: Tensor, allowed: float) -> str | None:
    routings = {each for each in routing_functions(model).values() if not isinstance(each, ConstantRouting)}
    if not routings:
        return None
    seen = float(_errors(with_routing(model, lambda weights: weights.mean(0, keepdim=True).expand_as(weights))(inputs),
                         exact).median())  # fmt: skip
    if seen >= _VISIBLE * allowed:
        return None
    changes = f"averaging the routing weights over the examples changes the output by {seen:.1e} only"
    if seen >= _VISIBLE * _LEAST_ALLOWED:
        changes = changes.removesuffix(" only")
        reason = f"the network's own error in fp32 is {allowed / _TIMES_EAGER:.1e}, which hides that"
    else:
        reason = f"the {len(routings)} routing functions give nearly the same weights to all, as before training"
    return f"{changes}: {reason}, and the check could not tell a file that mixes examples up"


def with_routing(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Run:
    """Return a function that runs a model with changed routing weights `[B, E]`; the model does not change."""

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        with ExitStack() as hooks:
            for routing in set(routing_functions(model).values()):
                handle = routing.register_forward_hook(lambda module, arguments, weights: change(weights))
                hooks.callback(handle.remove)
            return model(x)

    return run


def verify(run: Run, reference: Reference, batches: Sequence[int], what: str) -> Mapping[int, float]:
    """Run a file at several batch sizes and compare shapes, then values.

    Args:
        run: From `[B, ...]` to `[B, ...]`, fp32 on the CPU.
        reference: Has at least as many examples as the largest batch.
        batches: Sizes to run; each starts where the previous one ended, so that all examples are used.
        what: For messages, such as "the file in ONNX Runtime".

    Returns:
        The worst error for each size.

    Raises:
        ExportError: A shape or a value is wrong, or the runtime fails.
    """
    errors: dict[int, float] = {}
    start = 0
    for batch in batches:
        start = start if start + batch <= len(reference.inputs) else 0
        chosen = slice(start, start + batch)
        start += batch
        expected = reference.outputs[chosen]
        found = _run(run, reference.inputs[chosen].contiguous(), what)
        if tuple(found.shape) != tuple(expected.shape):
            raise _different(what, f"shape {tuple(found.shape)} instead of {tuple(expected.shape)} at batch {batch}")
        error = worst_error(found, expected)
        if not error <= reference.allowed:
            raise _different(
                what, f"an error of {error:.2g} at batch {batch}, where {reference.allowed:.2g} is allowed"
            )
        errors[batch] = max(error, errors.get(batch, 0.0))
    return errors


def _run(run: Run, x: Tensor, what: str) -> Any:
    try:
        return run(x)
    except Exception as error:
        raise _different(what, f"{shown(first_line(error), 300)} at batch {len(x)}") from error


def _different(what: str, found: str) -> ExportError:
    return ExportError(
        f"`model` must compute the same as {what}, got {found}: try another format, or other `forms` for its layers"
    )
