"""The schema of a checkpoint's JSON: types, ranges, lengths and depth of every field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from condconv.errors import shown

MOST_PIXELS = 2_048
"""Largest side of an image: a batch of 64 takes 3 GB, and a network's maps several times as much."""
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Ways to scale an image, by Pillow's names."""

PARTS = ("model", "ema", "optimizer", "group")
"""What the name of a tensor begins with, before the first point."""

MOST_CLASSES = 1_000_000
MOST_TEXT = 4_096
"""Characters of the name of a class, and of other texts."""
_MOST_EPOCHS = 100_000
_MOST_DEPTH = 6  # of the values that a field leaves open
_MOST_ENTRIES = 1_000_000

Check = Callable[[str, Any], None]
"""`check(where, value)` raises a `SchemaError` if the value at that place is not right."""


class SchemaError(ValueError):
    """A value breaks the schema.

    Args:
        where: Its place.
        rule: What it must be.
        value: What it is.
    """

    def __init__(self, where: str, rule: str, value: Any) -> None:
        super().__init__(f"{where} must be {rule}, got {shown(value)}")


def check_header(header: Any) -> None:
    """Check all of a header.

    Raises:
        SchemaError: Something in it is not as the format says.
    """
    _mapping(_anything)("the header", header)
    kind = header.get("kind")
    _one_of(*_KINDS)("`kind`", kind)
    _record(_KINDS[kind])("", header)
    for number, epoch in enumerate(header["metrics"], 1):
        if epoch["epoch"] != number:
            raise SchemaError(f"`metrics[{number - 1}].epoch`", f"{number}, as epochs are counted", epoch["epoch"])
    if kind == "classifier":
        facts = header["preprocessing"]
        for each in ("mean", "std"):
            if len(facts[each]) != facts["channels"]:
                rule = f"a list of {facts['channels']} numbers, one per channel"
                raise SchemaError(f"`preprocessing.{each}`", rule, facts[each])


def _value(rule: str, holds: Callable[[Any], bool]) -> Check:
    def check(where: str, value: Any) -> None:
        if not holds(value):
            raise SchemaError(where, rule, value)

    return check


def _whole(least: int, most: int = 2**53) -> Check:
    rule = f"a whole number from {least} to {most}"
    return _value(rule, lambda value: type(value) is int and least <= value <= most)


def _number(rule: str, holds: Callable[[float], bool] = lambda value: True) -> Check:
    return _value(rule, lambda value: _is_number(value) and holds(value))


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= 2**53)


def _one_of(*choices: Any) -> Check:
    rule = "one of " + ", ".join(map(repr, choices))
    return _value(rule, lambda value: type(value) in map(type, choices) and value in choices)


def _none_or(check: Check) -> Check:
    return lambda where, value: None if value is None else check(where, value)


def _list(item: Check, least: int, most: int) -> Check:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise SchemaError(where, f"a list of {least} to {most}", value)
        for index, each in enumerate(value):
            item(f"`{where.strip('`')}[{index}]`", each)

    return check


def _mapping(item: Check, key: str = "") -> Check:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, Mapping) or len(value) > _MOST_ENTRIES:
            raise SchemaError(where, "a mapping", value)
        for name, each in value.items():
            if not re.fullmatch(key or r".{1,1000}", name, re.DOTALL):
                raise SchemaError(where, "a mapping with the names that condconv writes", name)
            item(f"{where} of {shown(name)}", each)

    return check


def _record(fields: Mapping[str, Check]) -> Check:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise SchemaError(where, "a mapping", value)
        if value.keys() != fields.keys():
            raise SchemaError(where or "the header", f"a mapping of {', '.join(sorted(fields))}", sorted(value))
        prefix = f"{where.strip('`')}." if where else ""
        for name, each in fields.items():
            each(f"`{prefix}{name}`", value[name])

    return check


def _is_plain(value: Any, depth: int = _MOST_DEPTH) -> bool:
    """Return whether a value is plain and not nested too deep."""
    if isinstance(value, (list, Mapping)):
        inner = value.values() if isinstance(value, Mapping) else value
        return depth > 0 and len(value) <= _MOST_ENTRIES and all(_is_plain(each, depth - 1) for each in inner)
    return value is None or isinstance(value, (bool, int, float, str))


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _are_unique(check: Check) -> Check:
    def both(where: str, value: Any) -> None:
        check(where, value)
        if len(set(value)) != len(value):
            raise SchemaError(where, "a list without repetitions", value)

    return both


def _group(where: str, value: Any) -> None:
    """Check a group of an optimizer: plain values by name, and the numbers of its parameters."""
    _mapping(_plain)(where, value)
    _list(_whole(0), 0, _MOST_ENTRIES)(f"`{where.strip('`')}.params`", value.get("params"))


def _anything(where: str, value: Any) -> None:
    """Check nothing."""


_text = _value(
    f"a text of 1 to {MOST_TEXT} characters", lambda value: type(value) is str and 0 < len(value) <= MOST_TEXT
)
_plain = _value(f"a plain value, nested at most {_MOST_DEPTH} deep", _is_plain)
_finite = _number("a finite number")
_share = _number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_names = _are_unique(_list(_text, 0, MOST_CLASSES))
_optimizer = _record(
    {
        "state": _mapping(_mapping(_plain), key=r"[0-9]{1,9}"),
        "param_groups": _list(_group, 1, 10_000),
    }
)
_common = {
    "format": _whole(0),
    "kind": _text,
    "config": _mapping(_plain),
    "optimizer": _none_or(_optimizer),
    "scaler": _none_or(_mapping(_plain)),
    "versions": _mapping(_text),
    "digests": _mapping(_value("64 hexadecimal digits", _is_digest), key="|".join(PARTS)),
}
_classifier = {
    **_common,
    "model_options": _mapping(_plain),
    "class_names": _are_unique(_list(_text, 1, MOST_CLASSES)),
    "preprocessing": _record(
        {
            "size": _whole(1, MOST_PIXELS),
            "channels": _one_of(1, 3),
            "crop": _number("a number from 0.25 to 1", lambda value: 0.25 <= value <= 1),  # size / crop takes memory
            "interpolation": _one_of(*INTERPOLATIONS),
            "mean": _list(_number("a number from -1000 to 1000", lambda value: abs(value) <= 1000), 1, 3),
            "std": _list(_number("a number from 1e-6 to 1e6", lambda value: 1e-6 <= value <= 1e6), 1, 3),
        }
    ),
    "metrics": _list(
        _record(
            {
                "epoch": _whole(1),
                "lr": _finite,
                "train_loss": _finite,
                "val_loss": _finite,
                "val_top1": _share,
                "val_top5": _none_or(_share),
                "train_images_per_second": _finite,
                "seconds": _finite,
                "skipped_images": _whole(0),
            }
        ),
        0,
        _MOST_EPOCHS,
    ),
    "train_images": _whole(0),
    "static_layers": _names,
}
_detector = {
    **_common,
    "categories": _are_unique(_list(_text, 1, MOST_CLASSES)),
    "images": _whole(1),
    "metrics": _list(
        _record({"epoch": _whole(1), "lr": _finite, "train_loss": _finite, "ap": _share, "seconds": _finite}),
        0,
        _MOST_EPOCHS,
    ),
}
_KINDS: dict[str, dict[str, Check]] = {"classifier": _classifier, "detector": _detector}
