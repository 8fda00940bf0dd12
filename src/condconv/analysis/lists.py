"""Convert records to the lists and numbers of a JSON file, and back; files are checked like any input."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condconv.analysis.records import Intervention, RoutingRecord
from condconv.analysis.statistics import BINS
from condconv.errors import shown
from condconv.files.paths import read_text
from condconv.files.schema import TEXT, SchemaError, anything, none_or, number, record, sequence, whole

FORMAT = 2
"""Version of the JSON file's layout."""

_LONGEST = 2**30  # bytes of a file: it has sums for each class, expert and layer
_COUNTS = ("examples", "histogram", "outside", "class_examples", "top_ids")
# Experts, classes, bins, the examples that are remembered, and the routing vector.
_SHAPES = {
    "examples": "",
    "vector_sums": "V",
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
_KNOWN = none_or(whole(0))  # without classes these are not known
_SHARE = none_or(number("a number from 0 to 1", lambda value: 0 <= value <= 1))
_REPORT = record(
    {
        "class_names": none_or(sequence(TEXT)),
        "routings": sequence(
            record(
                {"name": TEXT, "layers": sequence(TEXT, 1), "kind": TEXT, **dict.fromkeys(_SHAPES, anything)},
                optional={"kernel_variation": _SHARE},
            ),
            1,
        ),
        "interventions": sequence(
            record(
                {
                    "name": TEXT,
                    "routings": sequence(TEXT),
                    "images": whole(1),
                    "agree": whole(0),
                    "right": _KNOWN,
                    "gained": _KNOWN,
                    "lost": _KNOWN,
                }
            )
        ),
    },
    exact=False,
)


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
    """Return what the JSON file of a report holds; of its tensors the names are checked only.

    Raises:
        ValueError: It cannot be read, or is not a report of this version; the text continues after "which".
    """
    try:
        values = json.loads(read_text(path, _LONGEST))
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
    try:
        _REPORT("", values)
    except SchemaError as error:
        raise ValueError(f"has a value of another kind ({error})") from error
    return values


def record_from_lists(given: Mapping[str, Any], num_classes: int) -> RoutingRecord:
    """Return the record whose fields were read from JSON.

    Args:
        given: One of the `"routings"` that `read_lists` returned.
        num_classes: K, 0 without classes.

    Raises:
        ValueError: A tensor has other values or another shape.
    """
    where = shown(given["name"])
    tensors = {name: _tensor(given[name], f"{name!r} of {where}", name in _COUNTS) for name in _SHAPES}
    experts = tensors["weight_sums"].numel()
    remembered = tensors["top_ids"].shape[-1] if tensors["top_ids"].dim() else 0
    sizes = {"E": experts, "K": num_classes, "B": BINS, "N": remembered, "V": tensors["vector_sums"].numel()}
    for name, letters in _SHAPES.items():
        shape = tuple(sizes[letter] for letter in letters)
        if tensors[name].numel() == 0 and 0 in shape:
            tensors[name] = tensors[name].reshape(shape)  # an empty list has lost its columns
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise ValueError(f"has {name!r} of {where} in shape {found}, not {shape}")
    if int(tensors["examples"]) < 1:
        raise ValueError(f"has no examples of {where}")
    most = int(tensors["examples"]) * math.log2(experts) + 1  # and one for rounding
    if abs(float(tensors["entropy_sum"])) > most:
        raise ValueError(f"has an 'entropy_sum' of {where} beyond {most:,.0f}")
    variation = given.get("kernel_variation")
    return RoutingRecord(given["name"], tuple(given["layers"]), given["kind"], kernel_variation=variation, **tensors)


def intervention_from_lists(given: Mapping[str, Any]) -> Intervention:
    """Return the intervention whose fields were read from JSON: one of those that `read_lists` returned."""
    return Intervention(**{**given, "routings": tuple(given["routings"])})


def _tensor(given: Any, what: str, is_count: bool) -> Tensor:
    try:
        tensor = torch.tensor(given, dtype=torch.long if is_count else torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"has no numbers in even rows as {what}") from error
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"has numbers that are not finite in {what}")
    return tensor
