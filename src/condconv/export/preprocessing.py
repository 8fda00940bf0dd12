"""How images are prepared for an exported network: the settings that its file contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from condconv.errors import UsageError, shown
from condconv.files.checkpoint_format import INTERPOLATIONS
from condconv.files.schema import is_finite_number

REQUIRED = ("size", "mean", "std")
DEFAULTS = {"crop": 1.0, "interpolation": "bicubic"}
KEYS = (*REQUIRED, "channels", *DEFAULTS)


def complete_preprocessing(given: Mapping[str, Any], example_input: Tensor) -> dict[str, Any]:
    """Return all settings of preprocessing, so that a reader of the file has nothing to guess.

    The shorter side of a picture is scaled to `size / crop` pixels, the middle `size` x `size` pixels are cut out, and
    values from 0 to 1 have `mean` subtracted and are divided by `std`.

    Args:
        given: Must have `size` in pixels, and `mean` and `std` with a number for each channel. May have `channels`,
            their number, `crop`, above 0 and at most 1 (default: 1), and `interpolation` (default: `"bicubic"`).
        example_input: `[B, C, S, S]`, an input of the network.

    Raises:
        UsageError: A setting is missing, unknown, or does not fit the network.
    """
    if not isinstance(given, Mapping):
        raise _error(f"be a dictionary with {', '.join(REQUIRED)}", f"a {type(given).__name__}", "give one")
    if unknown := [key for key in given if key not in KEYS]:
        raise _error(f"have no keys but {', '.join(KEYS)}", shown(unknown[0]), "leave it out")
    if missing := [key for key in REQUIRED if key not in given]:
        raise _error(f"have {', '.join(REQUIRED)}", f"no {missing[0]!r}", "add it")
    if example_input.dim() != 4 or example_input.shape[2] != example_input.shape[3]:
        shape = ", ".join(map(str, example_input.shape[1:]))
        raise _error("be for square images", f"an example [B, {shape}]", "leave it out, or give another example")
    channels, size = example_input.shape[1:3]
    facts = {**DEFAULTS, "channels": channels, **given}
    for key, expected in (("size", size), ("channels", channels)):
        if not isinstance(facts[key], int) or facts[key] != expected:
            raise _error(f"have the example's {key}, {expected}", shown(facts[key]), "change one of them")
    for key in ("mean", "std"):
        facts[key] = _numbers(key, facts[key], channels)
    if not is_finite_number(facts["crop"]) or not 0 < facts["crop"] <= 1:
        raise _error("have a crop above 0 and up to 1", shown(facts["crop"]), "1 keeps the whole shorter side")
    if facts["interpolation"] not in INTERPOLATIONS:
        allowed = f"have an interpolation of {', '.join(INTERPOLATIONS)}"
        raise _error(allowed, shown(facts["interpolation"]), "take one of them")
    return facts


def _numbers(key: str, values: Any, count: int) -> list[float]:
    if (
        not isinstance(values, Sequence)
        or len(values) != count
        or not all(is_finite_number(each) and (key == "mean" or each > 0) for each in values)
    ):
        kind = "numbers" if key == "mean" else "positive numbers"
        raise _error(f"have a {key} of {count} {kind}, one per channel", shown(values), "give a list of them")
    return [float(each) for each in values]


def _error(rule: str, got: str, remedy: str) -> UsageError:
    return UsageError(f"`preprocessing` must {rule}, got {got}: {remedy}")
