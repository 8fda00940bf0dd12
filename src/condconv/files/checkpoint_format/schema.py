"""The schema of a checkpoint's JSON: types, ranges, lengths and depth of every field."""

from __future__ import annotations

import re
from typing import Any

from condconv.files.schema import (
    FINITE,
    PLAIN,
    Check,
    SchemaError,
    anything,
    mapping,
    none_or,
    number,
    one_of,
    record,
    sequence,
    unique,
    value_that,
    whole,
)

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


def check_header(header: Any) -> None:
    """Check all of a header.

    Raises:
        SchemaError: Something in it is not as the format says.
    """
    mapping(anything)("the header", header)
    kind = header.get("kind")
    one_of(*_KINDS)("`kind`", kind)
    record(_KINDS[kind], name="the header")("", header)
    for index, epoch in enumerate(header["metrics"]):
        if epoch["epoch"] != index + 1:
            raise SchemaError(f"`metrics[{index}].epoch`", f"{index + 1}, as epochs are counted", epoch["epoch"])
    if kind == "classifier":
        facts = header["preprocessing"]
        for each in ("mean", "std"):
            if len(facts[each]) != facts["channels"]:
                rule = f"a list of {facts['channels']} numbers, one per channel"
                raise SchemaError(f"`preprocessing.{each}`", rule, facts[each])


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _group(where: str, value: Any) -> None:
    """Check a group of an optimizer: plain values by name, and the numbers of its parameters."""
    mapping(PLAIN)(where, value)
    sequence(whole(0))(f"`{where.strip('`')}.params`", value.get("params"))


_text = value_that(
    f"a text of 1 to {MOST_TEXT} characters", lambda value: type(value) is str and 0 < len(value) <= MOST_TEXT
)
_share = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_optimizer = record(
    {
        "state": mapping(mapping(PLAIN), key=r"[0-9]{1,9}"),
        "param_groups": sequence(_group, 1, 10_000),
    }
)
_common = {
    "format": whole(0),
    "kind": _text,
    "config": mapping(PLAIN),
    "optimizer": none_or(_optimizer),
    "scaler": none_or(mapping(PLAIN)),
    "versions": mapping(_text),
    "digests": mapping(value_that("64 hexadecimal digits", _is_digest), key="|".join(PARTS)),
}
_classifier = {
    **_common,
    "model_options": mapping(PLAIN),
    "class_names": unique(sequence(_text, 1, MOST_CLASSES)),
    "preprocessing": record(
        {
            "size": whole(1, MOST_PIXELS),
            "channels": one_of(1, 3),
            "crop": number("a number from 0.25 to 1", lambda value: 0.25 <= value <= 1),  # size / crop takes memory
            "interpolation": one_of(*INTERPOLATIONS),
            "mean": sequence(number("a number from -1000 to 1000", lambda value: abs(value) <= 1000), 1, 3),
            "std": sequence(number("a number from 1e-6 to 1e6", lambda value: 1e-6 <= value <= 1e6), 1, 3),
        }
    ),
    "metrics": sequence(
        record(
            {
                "epoch": whole(1),
                "lr": FINITE,
                "train_loss": FINITE,
                "val_loss": FINITE,
                "val_top1": _share,
                "val_top5": none_or(_share),
                "train_images_per_second": FINITE,
                "seconds": FINITE,
                "skipped_images": whole(0),
            },
            optional={
                "routing_variation": none_or(_share),
                "kernel_variation": none_or(_share),
                "experts_in_use": none_or(FINITE),
                "expert_similarity": none_or(FINITE),
                "routing_state": none_or(_text),
            },
        ),
        0,
        _MOST_EPOCHS,
    ),
    "train_images": whole(0),
    "static_layers": unique(sequence(_text)),
    "stores": mapping(_text),
}
_detector = {
    **_common,
    "categories": unique(sequence(_text, 1, MOST_CLASSES)),
    "images": whole(1),
    "metrics": sequence(
        record({"epoch": whole(1), "lr": FINITE, "train_loss": FINITE, "ap": _share, "seconds": FINITE}),
        0,
        _MOST_EPOCHS,
    ),
}
_KINDS: dict[str, dict[str, Check]] = {"classifier": _classifier, "detector": _detector}
