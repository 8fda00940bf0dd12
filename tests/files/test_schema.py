"""Dataclasses out of JSON: what is of another type is refused with its place."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from condconv.files.schema import SchemaError, is_finite_number, read_record


@dataclass(frozen=True)
class Part:
    name: str
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Whole:
    count: int
    share: float | None
    done: bool
    curves: tuple[tuple[float, ...], ...]
    parts: tuple[Part, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


WHOLE = Whole(3, 0.5, True, ((1.0, 2),), (Part("a", (0.25,)), Part("b", (1,))), {"deep": [1, {"x": None}]})


def test_what_was_written_comes_back():
    values = json.loads(json.dumps(asdict(WHOLE)))
    assert read_record(Whole, values) == WHOLE
    del values["options"]
    assert read_record(Whole, {**values, "share": None}).options == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": True}, "`count` must be a whole number from -9007199254740992 to 9007199254740992, got True"),
        ({"count": 3.0}, "`count` must be a whole number"),
        ({"share": float("nan")}, "`share` must be a finite number, got nan"),
        ({"share": "0.5"}, "`share` must be a finite number, got '0.5'"),
        ({"done": 1}, "`done` must be one of True, False, got 1"),
        ({"curves": [[]]}, r"`curves\[0\]` must be a list of 1 to"),
        ({"curves": [[1.0], [float("inf")]]}, r"`curves\[1\]\[0\]` must be a finite number, got inf"),
        ({"parts": [{"name": 5, "weights": [1]}]}, r"`parts\[0\].name` must be a text, got 5"),
        ({"parts": [{"weights": [1]}]}, r"`parts\[0\]` must be a mapping of name, weights, got one without 'name'"),
        ({"options": []}, r"`options` must be a mapping, got \[\]"),
        ({"more": 1}, "^it must be a mapping of count, curves, done, options, parts, share, got one with 'more'"),
    ],
)
def test_what_is_of_another_type_is_named(changes, message):
    with pytest.raises(SchemaError, match=message):
        read_record(Whole, json.loads(json.dumps(asdict(WHOLE))) | changes)


def test_numbers_that_are_finite():
    assert all(map(is_finite_number, (0, -3, 2**53, 1e300, -0.0)))
    assert not any(map(is_finite_number, (True, None, "1", 2**53 + 1, float("nan"), float("-inf"), 1j)))
