"""A conversion as data that a file can hold: what was converted and how, so that it can be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condconv.convert.scope import Group
from condconv.errors import UsageError, first_line, shown, shown_name
from condconv.files.paths import read_text
from condconv.nn.factory import Routing

_FORMAT = "condconv conversion 1"
_REMEDY = "give a ConversionReport, what its to_dict returned, or the file that its save wrote"
_Kinds = Mapping[str, type | tuple[type, ...]]
_CONVERSION: _Kinds = {
    "num_experts": int,
    "routing": (str, type(None)),
    "init": str,
    "expert_spread": (int, float),
    "impl": str,
    "groups": list,
}
_GROUP: _Kinds = {"leader": (str, type(None)), "layers": list, "last": str, "channels": (int, type(None))}


@dataclass(frozen=True)
class Conversion:
    """How layers become conditional.

    Attributes:
        num_experts: E.
        routing: As in `convert_`.
        init: As in `convert_`.
        expert_spread: As in `convert_`.
        impl: As in `convert_`.
        groups: Which layers share a routing function, in the order in which they run.
    """

    num_experts: int
    routing: Routing
    init: str
    expert_spread: float
    impl: str
    groups: tuple[Group, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the conversion as numbers and text in dicts and lists; routing that is not text becomes `None`."""
        values = {name: getattr(self, name) for name in _CONVERSION}
        values["routing"] = self.routing if isinstance(self.routing, str) else None
        values["groups"] = [{**asdict(group), "layers": list(group.layers)} for group in self.groups]
        return {"format": _FORMAT, **values}

    @classmethod
    def from_dict(cls, data: Any, routing: Routing | None = None) -> Conversion:
        """Return the conversion that `to_dict` made a dict of.

        Args:
            data: The dict; nothing in it is trusted or run.
            routing: Replaces the one in the dict.

        Raises:
            UsageError: It is something else, or it has no routing and none is given.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise UsageError(f"`report` must be a conversion, {_FORMAT!r}, got {shown(data)}: {_REMEDY}")
        values = _checked(data, _CONVERSION)
        groups = tuple(_group(each) for each in values["groups"])
        chosen = values["routing"] if routing is None else routing
        if chosen is None:
            raise UsageError(
                "`routing` must be given where that of the report was a class, a function or a module, got None: give "
                "the same again"
            )
        return cls(**{**values, "routing": chosen, "groups": groups})


def read_conversion(path: str | Path) -> Any:
    """Return the dict of a conversion that is in a file, unchecked.

    Raises:
        UsageError: There is no such file, or it is not JSON.
    """
    named = shown_name(path)
    try:
        return json.loads(read_text(Path(path)))
    except OSError as error:
        raise UsageError(f"`report` must be a file, got {named} ({error.strerror or error}): {_REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`report` must be a JSON file, got {named} ({first_line(error)}): {_REMEDY}") from error


def _group(data: Any) -> Group:
    values = _checked(data, _GROUP)
    layers = values["layers"]
    fits = layers and all(isinstance(name, str) for name in layers)
    if not fits or (values["leader"] is None) != (values["channels"] is None):
        raise UsageError(f"`report` must name the layers of each group, got {shown(data)}: {_REMEDY}")
    return Group(**{**values, "layers": tuple(layers)})


def _checked(data: Any, kinds: _Kinds) -> dict[str, Any]:
    """Return the values that a dict must have, with their types checked; other entries are ignored."""
    values = data if isinstance(data, Mapping) else {}
    for name, kind in kinds.items():
        if name not in values or not isinstance(values[name], kind) or isinstance(values[name], bool):
            got = shown(values[name]) if name in values else "none"
            raise UsageError(f"`report` must have a {name!r} as conversions do, got {got}: {_REMEDY}")
    return {name: values[name] for name in kinds}
