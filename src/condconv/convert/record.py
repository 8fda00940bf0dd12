"""A conversion as data that a file can hold: what was converted and how, so that it can be repeated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from condconv.convert.scope import Group
from condconv.errors import UsageError, few, first_line, shown, shown_name
from condconv.files.paths import read_text
from condconv.files.schema import FINITE, TEXT, SchemaError, none_or, record, sequence, whole
from condconv.nn.experts import ExpertsOption
from condconv.nn.factory import Routing

_FORMAT = "condconv conversion 1"
_MOST_EXPERTS = 4096  # as in networks by name: a report may not ask for more memory than anybody uses
_REMEDY = "give a ConversionReport, what its to_dict returned, or the file that its save wrote"
_GROUP = record(
    {"leader": none_or(TEXT), "layers": sequence(TEXT, 1), "last": TEXT, "channels": none_or(whole(1))}, exact=False
)
_CONVERSION = {
    "num_experts": whole(1, _MOST_EXPERTS),
    "routing": none_or(TEXT),
    "init": TEXT,
    "expert_spread": FINITE,
    "experts": none_or(TEXT),
    "impl": TEXT,
    "groups": sequence(_GROUP, 1),
}


@dataclass(frozen=True)
class Conversion:
    """How layers become conditional.

    Attributes:
        num_experts: Number of experts, E.
        routing: As in `convert_`.
        init: As in `convert_`.
        expert_spread: As in `convert_`.
        experts: As in `convert_`.
        impl: As in `convert_`.
        groups: Which layers share a routing function, in the order in which they run.
    """

    num_experts: int
    routing: Routing
    init: str
    expert_spread: float
    experts: ExpertsOption
    impl: str
    groups: tuple[Group, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the conversion as numbers and text in dicts and lists; what is not text becomes `None`."""
        values = {name: getattr(self, name) for name in _CONVERSION}
        for name in ("routing", "experts"):
            values[name] = values[name] if isinstance(values[name], str) else None
        values["groups"] = [{**asdict(group), "layers": list(group.layers)} for group in self.groups]
        return {"format": _FORMAT, **values}

    @classmethod
    def from_dict(cls, data: Any, routing: Routing | None = None, experts: ExpertsOption | None = None) -> Conversion:
        """Return the conversion that `to_dict` made a dict of.

        Args:
            data: The dict; nothing in it is trusted or run.
            routing: Replaces the one in the dict.
            experts: Replace those in the dict.

        Raises:
            UsageError: It is something else, or it has no routing or experts and none are given.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise UsageError(f"`report` must be a conversion, {_FORMAT!r}, got {shown(data)}: {_REMEDY}")
        try:
            record(_CONVERSION, exact=False)("", data)
        except SchemaError as error:
            raise UsageError(
                f"`report` must be a conversion as condconv writes it, got one in which {error}: {_REMEDY}"
            ) from error
        values = {name: data[name] for name in _CONVERSION}
        groups = tuple(_group(each) for each in values["groups"])
        repeated = [
            name for name, times in Counter(each for group in groups for each in group.layers).items() if times > 1
        ]
        if repeated:
            raise UsageError(f"`report` must name each layer once, got {few(map(repr, repeated))} again: {_REMEDY}")
        given = {name: value for name, value in (("routing", routing), ("experts", experts)) if value is not None}
        chosen = {**values, **given, "groups": groups}
        for name in ("routing", "experts"):
            if chosen[name] is None:
                raise UsageError(
                    f"`{name}` must be given where that of the report was a class, a function or a module, got None: "
                    "give the same again"
                )
        return cls(**chosen)


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


def _group(values: Mapping[str, Any]) -> Group:
    if (values["leader"] is None) != (values["channels"] is None):
        raise UsageError(
            f"`report` must have a leader with channels or neither in each group, got {shown(values)}: {_REMEDY}"
        )
    named = {field.name: values[field.name] for field in fields(Group)}
    return Group(**{**named, "layers": tuple(values["layers"])})
