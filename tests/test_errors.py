"""Words for messages: values are short, on one line, and harmless to a terminal."""

from __future__ import annotations

import pytest

from condconv.errors import few, shown, shown_name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(3.5, "3.5", id="number"),
        pytest.param("resnet18", "'resnet18'", id="text"),
        pytest.param("red\x1b[31m\n", r"'red\x1b[31m\n'", id="terminal escape"),
    ],
)
def test_value_is_shown_as_python_writes_it(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_value_is_cut_in_the_middle() -> None:
    text = shown("a" * 500 + "z" * 500, most=21)
    assert text == "'aaaaaaaaa…zzzzzzzzz'"
    assert len(text) == 21


def test_control_characters_of_other_objects_are_escaped() -> None:
    class Folder:
        def __repr__(self) -> str:
            return "Folder(\x07)"

    assert shown(Folder()) == r"Folder(\x07)"


def test_names_are_shown_as_they_are_but_for_what_a_terminal_obeys() -> None:
    assert shown_name("runs/größe 猫/a b") == "runs/größe 猫/a b"
    assert shown_name("cat\x1b]0;owned\x07\n\u202egpj") == r"cat\x1b]0;owned\x07\n\u202egpj"
    assert shown_name("na\udcefve") == r"na\udcefve"
    assert len(shown_name("d/" * 9000)) == 400
    assert few(["a\x9b", "b", "c"], most=2) == r"a\x9b, b and 1 more"
