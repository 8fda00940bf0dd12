"""Inputs on which a file is tried: several batch sizes and, if sizes are free, other sizes than the traced one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from condconv.errors import UsageError, first_line, one_line
from condconv.export import verification
from condconv.export.formats.request import Request
from condconv.export.storage import store_weights_, widened
from condconv.export.verification import Reference, Run, varied_inputs

_LARGEST_TRIED = 8


@dataclass(frozen=True)
class Trial:
    """Runs at one size of images.

    Attributes:
        size: Height and width, or as many sizes as the input has after its channels.
        batches: Batch sizes to run, one after the other.
        reference: The expected output.
    """

    size: tuple[int, ...]
    batches: tuple[int, ...]
    reference: Reference


def make_trials(model: nn.Module, request: Request) -> tuple[Trial, ...]:
    """Return what the file has to compute, first at the traced size.

    Args:
        model: The network, in evaluation mode on the CPU; does not change.
        request: What to write.

    Raises:
        UsageError: The network cannot be compared, or takes only one size although all are requested.
    """
    batches = _batches(request)
    # Few at other sizes: what depends on the batch was seen at the first.
    few = (1, 2) if request.batch is None else (request.batch,)
    traced: tuple[int, ...] = tuple(request.example_input.shape[2:])
    plans = {traced: batches} | dict.fromkeys(_other_sizes(model, request) if request.dynamic_size else (), few)
    return _trials(model, request, plans)


def store_(rewritten: nn.Module, request: Request, trials: Sequence[Trial]) -> tuple[tuple[Trial, ...], float | None]:
    """Store the weights of a rewritten network as they are to be in the file, in place.

    Args:
        rewritten: As `trials` were passed by it.
        request: What to write.
        trials: From `make_trials`.

    Returns:
        What the file has to compute with these weights, and their error; None for weights in fp32.

    Raises:
        UsageError: The network cannot be compared.
    """
    if request.weights == "float32":
        return tuple(trials), None
    store_weights_(rewritten, request.weights)
    with widened(rewritten):
        stored = _trials(rewritten, request, {trial.size: trial.batches for trial in trials})
    return stored, verification.worst_error(stored[0].reference.outputs, trials[0].reference.outputs)


def run_trials(run: Run, trials: Sequence[Trial], what: str) -> tuple[Mapping[int, float], ...]:
    """Run a file at all sizes and batch sizes; return the worst errors, by batch size, of each trial.

    Args:
        run: From `[B, ...]` to `[B, ...]`, fp32 on the CPU.
        trials: From `make_trials`.
        what: For messages, such as "the file in ONNX Runtime".

    Raises:
        ExportError: A shape or a value is wrong, or the runtime fails.
    """
    errors: list[Mapping[int, float]] = []
    for trial in trials:
        where = f", at {times(trial.size)}" if errors else ""
        errors.append(verification.verify(run, trial.reference, trial.batches, f"{what}{where}"))
    return tuple(errors)


def times(size: Sequence[int]) -> str:
    """Return a size in words, such as "224 x 224"."""
    return " x ".join(map(str, size))


def _batches(request: Request) -> tuple[int, ...]:
    if request.batch is not None:
        return (request.batch,) * (4 if request.batch == 1 else 2)
    return (1, 2, *(() if request.max_batch == 2 else (3,)), request.max_batch or _LARGEST_TRIED)


def _trials(model: nn.Module, request: Request, plans: Mapping[tuple[int, ...], tuple[int, ...]]) -> tuple[Trial, ...]:
    channels = request.example_input.shape[1]

    def trial(size: tuple[int, ...], batches: tuple[int, ...]) -> Trial:
        inputs = varied_inputs(request.example_input.new_zeros(1, channels, *size), sum(batches))
        return Trial(size, batches, verification.make_reference(model, inputs))

    return tuple(trial(size, batches) for size, batches in plans.items())


# From a traced size to others, by axis: whole strides more, another parity, and less. A network with skip connections
# may take multiples of its stride only.
_OTHER: tuple[Callable[[int, int], int], ...] = (
    lambda size, axis: size + 32 * (axis + 1),
    lambda size, axis: size + 2 * axis + 1,
    lambda size, axis: size - size // 4,
)


def _other_sizes(model: nn.Module, request: Request) -> list[tuple[int, ...]]:
    """Return sizes other than the traced one that a network takes.

    Raises:
        UsageError: It takes none of the sizes that are tried.
    """
    channels, *traced = request.example_input.shape[1:]
    found, reasons = [], {}
    for other in _OTHER:
        size = tuple(other(each, axis) for axis, each in enumerate(traced))
        try:
            with torch.no_grad():
                model(varied_inputs(request.example_input.new_zeros(1, channels, *size), 1))
            found.append(size)
        except Exception as error:  # of any kind: it is the model's own
            reasons[size] = first_line(error)
    if not found:
        (size, reason), *_ = reasons.items()
        raise UsageError(
            f"`dynamic_size` must be False for a network that takes images of one size, got True and a network that "
            f"fails at {times(size)} ({one_line(reason)[:200]}): write a file for each size"
        )
    return found
