"""Replace a layer by its conditional twin wherever it is registered, and back again."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[], None]:
    """Put `new` wherever `old` is registered in the model; return a function that puts `old` back.

    Forward hooks move too: the dictionaries themselves, so that the user's handles still remove them.
    """
    places = [
        (parent, attribute)
        for parent in list(model.modules())
        for attribute, child in list(parent._modules.items())
        if child is old
    ]
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    for parent, attribute in places:
        parent._modules[attribute] = new

    def restore() -> None:
        for parent, attribute in places:
            parent._modules[attribute] = old

    return restore
