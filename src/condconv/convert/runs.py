"""What the runs of a model before and after its conversion show about its layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from condconv.counting.tracing import Trace
from condconv.errors import UsageError, few


def why_not_called(watched: Trace | None, layer: nn.Module) -> str | None:
    """Return why a conditional layer cannot be called as the model calls a static one, or `None`."""
    dims = len(layer.kernel_size) + 2 if isinstance(layer, _ConvNd) else 2
    allowed = {"output_size"} if isinstance(layer, _ConvTransposeNd) else set()
    for call in () if watched is None else watched.calls:
        if call.module is not layer:
            continue
        if unknown := set(call.keywords) - allowed:
            return f"it is called with the keyword {few(sorted(unknown))}: give its input alone, without a name"
        if call.input_shape is not None and len(call.input_shape) < dims:
            return f"its input {list(call.input_shape)} has no batch dimension: call it with x.unsqueeze(0)"
    return None


def check_layers_run(
    old_layers: Mapping[str, nn.Module], new_layers: Mapping[str, nn.Module], before: Trace, after: Trace
) -> list[str]:
    """Check that the model calls the new layers in place of the old ones.

    Args:
        old_layers: By name. They share the hooks of the new ones, so the trace has seen them if they were called.
        new_layers: By name.
        before: A run with the old layers.
        after: A run with the new layers.

    Returns:
        The names of those that have not run, nor had run before.

    Raises:
        UsageError: The model still calls an old layer, or no longer calls one.
    """
    idle = [name for name, layer in new_layers.items() if not after.runs(layer)]
    lost = [name for name, old in old_layers.items() if after.runs(old) or (name in idle and before.runs(old))]
    if lost:
        raise UsageError(
            f"`model` must call its layers where it has registered them, got {few(map(repr, lost))}, of which it "
            "calls the old one (kept in a list, a closure or __dict__) or none (it looks for a class); it has been "
            "restored: use a torch.nn.ModuleList and call them from there, or leave them out by `skip`"
        )
    return idle
