"""The one way to choose layers, by patterns or by a function."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import condconv
from condconv.errors import UsageError
from condconv.nn.choice import choose_named
from tests.messages import assert_four_parts

LONG = "x" * 100_000
LAYERS: dict[str, nn.Module] = {
    "stem": nn.Conv2d(3, 4, 3),
    "blocks.0.conv1": nn.Conv2d(4, 4, 3),
    "blocks.0.conv2": nn.Conv2d(4, 4, 1),
    "blocks.10.conv1": nn.Conv2d(4, 4, 3),
    "fc": nn.Linear(4, 2),
}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, [*LAYERS]),
        ("*", [*LAYERS]),
        ("fc", ["fc"]),
        ("fc, stem", ["stem", "fc"]),
        (["fc", "stem,blocks.1?.*"], ["stem", "blocks.10.conv1", "fc"]),
        (("fc",), ["fc"]),
        ("blocks.0*", ["blocks.0.conv1", "blocks.0.conv2"]),
        ("*.conv[2-9]", ["blocks.0.conv2"]),
        (lambda name, module: isinstance(module, nn.Linear) or name == "stem", ["stem", "fc"]),
    ],
)
def test_what_is_chosen(choice: Any, expected: list[str]) -> None:
    assert choose_named(LAYERS, choice) == {name: LAYERS[name] for name in expected}
    assert [*choose_named(LAYERS, choice)] == expected, "in the order of the layers"


def test_what_is_skipped() -> None:
    assert [*choose_named(LAYERS, skip=["blocks.*"])] == ["stem", "fc"]
    assert [*choose_named(LAYERS, "blocks.*", lambda name, module: name.endswith("1"))] == ["blocks.0.conv2"]


def test_case_matters() -> None:
    with pytest.raises(UsageError, match="got 'FC' for none: near names are"):
        choose_named(LAYERS, "FC")


@pytest.mark.parametrize(
    "choice",
    [5, b"stem", "", " , ", [], [None], ["stem", 5], {"stem"}, "nope", ["stem", "nope"], "stem,\x1b[2J", LONG,
     [LONG] * 99, nn.Linear, nn.ReLU(), lambda name, module: False],
)  # fmt: skip
@pytest.mark.parametrize("argument", ["layers", "skip"])
def test_messages_have_four_parts(choice: Any, argument: str) -> None:
    chosen: dict[str, Any] = {"choice": None, "skip": None, {"layers": "choice"}.get(argument, "skip"): choice}
    assert_four_parts(argument, lambda: choose_named(LAYERS, **chosen))


def test_near_names_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        choose_named(LAYERS, "block.0.conv1", argument="--layers", kind="listed layers")
    assert str(caught.value).startswith(
        "`--layers` must match listed layers, got 'block.0.conv1' for none: near names are blocks.0.conv1, "
    )
    with pytest.raises(UsageError, match="got 'a' for none: there are none"):
        choose_named({}, "a")


def only_stems(name: str, module: Any) -> bool:
    return False


@pytest.mark.parametrize("choice", [only_stems, partial(only_stems)])
def test_a_function_is_named_without_its_address(choice: Any) -> None:
    with pytest.raises(UsageError, match="got [^ ]*<function only_stems>.* for none") as caught:
        choose_named(LAYERS, choice)
    assert "0x" not in str(caught.value)


def first(name: str, module: Any) -> bool:
    return name == "0"


def test_a_function_among_selectors_is_named_without_its_address() -> None:
    with pytest.raises(
        UsageError, match=r"`layers` must select a layer, got \(channels\(.*\) & <function first>\), which"
    ):
        condconv.convert_(nn.Sequential(nn.Conv2d(3, 4, 3)), 2, layers=condconv.select.channels(8) & first)


def test_nothing_is_left() -> None:
    with pytest.raises(UsageError, match="`skip` must leave some of the layers of the model, got '\\*.conv1' for all"):
        choose_named(LAYERS, "blocks.*.conv1", "*.conv1")


def test_there_is_no_other_matcher() -> None:
    package = Path(condconv.__file__).parent
    matchers = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if _matches(path)}
    assert matchers == {"nn/choice.py"}


def _matches(path: Path) -> bool:
    return re.search(r"\bfnmatch|\.full_match\(|PurePath\(.*\)\.match\(", path.read_text()) is not None
