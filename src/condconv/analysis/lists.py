"""Convert records to the lists and numbers of a JSON file, and back; files are checked like any input."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.statistics import BINS
from condconv.errors import few, shown
from condconv.files.paths import read_text

FORMAT = 1
"""Version of the JSON file's layout."""

_COUNTS = ("examples", "histogram", "outside", "class_examples", "top_ids")
# Experts, classes, bins, and the examples that are remembered.
_SHAPES = {
    "examples": "",
    "weight_sums": "E",
    "weight_squares": "E",
    "share_sums": "E",
    "entropy_sum": "",
    "histogram": "EB",
    "outside": "",
    "class_examples": "K",
    "class_sums": "KE",
    "class_squares": "KE",
    "class_share_sums": "KE",
    "highest_shares": "E",
    "top_weights": "EN",
    "top_ids": "EN",
    "similarity": "EE",
}
_INTERVENTION = {each.name for each in fields(Intervention)}


def record_to_lists(record: RoutingRecord) -> dict[str, Any]:
    """Return the fields of a record as text, numbers and lists."""
    return {
        name: value.tolist() if isinstance(value, Tensor) else list(value) if isinstance(value, tuple) else value
        for name, value in vars(record).items()
    }


def intervention_to_lists(intervention: Intervention) -> dict[str, Any]:
    """Return the fields of an intervention as text, numbers and lists."""
    return asdict(intervention) | {"routings": list(intervention.routings)}


def read_lists(path: Path) -> dict[str, Any]:
    """Return what the JSON file of a report holds, its parts not yet checked.

    Raises:
        ValueError: It cannot be read, or is not a report of this version; the text continues after "which".
    """
    try:
        values = json.loads(read_text(path))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ValueError("is not text (a pickle or a checkpoint?)") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not a complete JSON text, from line {error.lineno}, column {error.colno} on") from error
    if not isinstance(values, dict) or "format" not in values:
        raise ValueError("is JSON of something else, without a 'format'")
    if values["format"] != FORMAT:
        raise ValueError(f"has format {shown(values['format'])}")
    lacking = [name for name in ("class_names", "routings", "interventions") if name not in values]
    if lacking:
        raise ValueError(f"lacks {', '.join(map(repr, lacking))}")
    for name in ("routings", "interventions"):
        if not isinstance(values[name], list):
            raise ValueError(f"has no list as {name!r}")
    if not values["routings"]:
        raise ValueError("has no routing function")
    return values


def record_from_lists(given: Any, num_classes: int) -> RoutingRecord:
    """Return the record whose fields, as `record_to_lists` gives them, were read from JSON.

    Raises:
        ValueError: A field is missing, unknown, or of a wrong type or shape.
    """
    names = {"name", "layers", "kind", *_SHAPES}
    where = _check_names(given, names, "a routing function")
    layers = texts(given["layers"], f"'layers' of {where}")
    for name in ("name", "kind"):
        texts([given[name]], f"{name!r} of {where}")
    tensors = {name: _tensor(given[name], f"{name!r} of {where}", name in _COUNTS) for name in _SHAPES}
    experts = tensors["weight_sums"].numel()
    remembered = tensors["top_ids"].shape[-1] if tensors["top_ids"].dim() else 0
    sizes = {"E": experts, "K": num_classes, "B": BINS, "N": remembered}
    for name, letters in _SHAPES.items():
        shape = tuple(sizes[letter] for letter in letters)
        if tensors[name].numel() == 0 and 0 in shape:
            tensors[name] = tensors[name].reshape(shape)  # an empty list has lost its columns
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise ValueError(f"has {name!r} of {where} in shape {found}, not {shape}")
    if int(tensors["examples"]) < 1 or not layers:
        raise ValueError(f"has no examples or no layers of {where}")
    return RoutingRecord(given["name"], layers, given["kind"], **tensors)


def intervention_from_lists(given: Any) -> Intervention:
    """Return the intervention whose fields were read from JSON.

    Raises:
        ValueError: A field is missing, unknown, or of a wrong type.
    """
    where = _check_names(given, _INTERVENTION, "an intervention")
    texts([given["name"]], f"'name' of {where}")
    routings = texts(given["routings"], f"'routings' of {where}")
    for name in ("images", "agree", "right", "gained", "lost"):
        may_lack = given[name] is None and name not in ("images", "agree")
        if not may_lack and (type(given[name]) is not int or given[name] < (name == "images")):
            raise ValueError(f"has {shown(given[name])} as {name!r} of {where}")
    return Intervention(**given | {"routings": routings})


def _check_names(given: Any, names: set[str], what: str) -> str:
    """Check that an object has these fields and no others; returns how to call it."""
    if not isinstance(given, dict):
        raise ValueError(f"has {type(given).__name__} instead of {what}")
    where = shown(given["name"]) if isinstance(given.get("name"), str) else what
    for words, wrong in (("lacks", names - given.keys()), ("has an unknown", given.keys() - names)):
        if wrong:
            raise ValueError(f"{words} {few(map(shown, sorted(wrong)))} of {where}")
    return where


def texts(given: Any, what: str) -> tuple[str, ...]:
    """Return a list of texts that was read from JSON.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise ValueError(f"has no text as {what}")
    return tuple(given)


def _tensor(given: Any, what: str, is_count: bool) -> Tensor:
    try:
        tensor = torch.tensor(given, dtype=torch.long if is_count else torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"has no numbers in even rows as {what}") from error
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"has numbers that are not finite in {what}")
    return tensor
