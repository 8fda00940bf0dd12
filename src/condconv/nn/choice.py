"""The one way to choose layers of a model: by patterns of their names, or by a function."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from condconv.errors import UsageError, few, shown

LayerChoice = str | Sequence[str] | Callable[[str, Any], bool]
"""Which layers of a model: a pattern of their names, several, or a function.

A pattern is a name in which `*` stands for any text, points included, `?` for one character and `[...]` for one of
several: `"layer4.*"`, `"*.conv[12]"`. Case matters. Several patterns are a list, or one text with commas between:
`"layer4.*,fc"`. A function is called with the name and the module of each layer, and returns whether it is chosen:
`lambda name, module: isinstance(module, nn.Conv2d)`. A pattern that matches nothing is an error, and so is a function
that chooses nothing.
"""

_Layer = TypeVar("_Layer")
_LONGEST = 200  # characters of a pattern that are compared with names


def choose_named(
    layers: Mapping[str, _Layer],
    choice: LayerChoice | None = None,
    skip: LayerChoice | None = None,
    *,
    argument: str = "layers",
    kind: str = "layers of the model",
) -> dict[str, _Layer]:
    """Return those that are chosen and not skipped, in the order in which they are given.

    Args:
        layers: Layers by name, or other things that have names.
        choice: Which of them; `None` for all.
        skip: Which of them to leave out; `None` for none.
        argument: What the user calls `choice`, for messages.
        kind: What they are, for messages.

    Raises:
        UsageError: A choice is neither patterns nor a function, or matches nothing, or none is left after `skip`.

    Example:
        >>> choose_named({"stem": 1, "blocks.0": 2, "blocks.1": 3}, "blocks.*", skip="*.0")
        {'blocks.1': 3}
    """
    chosen = set(layers) if choice is None else _matched(layers, choice, argument, kind)
    skipped = set() if skip is None else _matched(layers, skip, "skip", kind)
    if skip is not None and not chosen - skipped:
        raise UsageError(f"`skip` must leave some of the {kind}, got {shown(skip)} for all that are chosen: skip fewer")
    return {name: layer for name, layer in layers.items() if name in chosen and name not in skipped}


def patterns_of(choice: LayerChoice, argument: str = "layers") -> tuple[str, ...] | None:
    """Return the patterns of a choice; `None` if it is a function.

    Args:
        choice: To check.
        argument: What the user calls it, for messages.

    Raises:
        UsageError: It is neither, or has no pattern.
    """
    if callable(choice) and not isinstance(choice, (type, nn.Module)):  # those may be meant, and can be called too
        return None
    listed = isinstance(choice, Sequence) and not isinstance(choice, (str, bytes))
    given: Any = choice if listed else [choice]
    texts = [each for each in given if isinstance(each, str)]
    patterns = tuple(part.strip() for text in texts for part in text.split(",") if part.strip())
    if len(texts) < len(given) or not patterns:
        raise UsageError(
            f"`{argument}` must be a pattern of names, several, or a function of name and module, got {shown(choice)}: "
            "such as 'layer4.*', ['stem', 'layer4.*'] or lambda name, module: 'conv' in name"
        )
    return patterns


def _matched(layers: Mapping[str, Any], choice: LayerChoice, argument: str, kind: str) -> set[str]:
    """Return the names of the layers that match; each pattern must match one at least."""
    patterns = patterns_of(choice, argument)
    function: Any = choice
    if patterns is None:
        matched = [(function, {name for name, layer in layers.items() if function(name, layer)})]
    else:
        matched = [(each, {name for name in layers if fnmatch.fnmatchcase(name, each)}) for each in patterns]
    for given, names in matched:
        if not names:
            raise UsageError(f"`{argument}` must match {kind}, got {shown(given)} for none: {_near(layers, given)}")
    return set().union(*(names for _, names in matched))


def _near(layers: Mapping[str, Any], given: Any) -> str:
    """Return in words which names there are, those first that are most like a pattern."""
    if not layers:
        return "there are none here"
    if not isinstance(given, str):
        return f"there are {few(layers)}"
    return f"near names are {few(difflib.get_close_matches(given[:_LONGEST], layers, n=4, cutoff=0.0))}"
