"""Hooks that a module would lose when another replaces it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def why_not_hooks(module: nn.Module) -> str | None:
    """Return why a module cannot be exchanged for another because of its hooks, or `None`.

    Forward hooks are not a reason: they are moved to the new layer.
    """
    if module._backward_hooks or module._backward_pre_hooks:
        return "it has backward hooks, which the new layer would not call: register them on that one"
    if any(not _is_left_behind(hook) for name in _STATE_HOOKS for hook in getattr(module, name, {}).values()):
        return "it has state-dict hooks, written for other shapes: register them on the new layer"
    if any(getattr(parameter, name) for parameter in module.parameters(recurse=False) for name in _PARAMETER_HOOKS):
        return "its parameters have hooks: register them on those of the new layer"
    return None


def _is_left_behind(hook: Callable[..., Any]) -> bool:
    """Whether torch's weight or spectral norm made a state-dict hook: removing the norm does not remove it.

    The hook renames the norm's tensors in old files. Here the norm itself is gone: a layer that still has one is
    refused because its weight is computed.
    """
    return str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.")
