"""The oldest versions that are tested are those that pyproject.toml allows."""

from __future__ import annotations

import re

import pytest

from scripts.oldest import PROJECT, oldest

TEXT = PROJECT.read_text(encoding="utf-8")


def test_each_package_that_is_asked_for_has_one_lower_bound() -> None:
    bounds = oldest(TEXT)
    assert bounds["torch"] == "2.11"
    extras = TEXT.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[0]
    asked = set(re.findall(r'"([a-z][\w-]+)', extras))
    assert {"timm", "datasets", "pytest"} <= asked
    assert asked - {*bounds} == {"condconv"}


@pytest.mark.parametrize(("package", "first"), [("datasets", (4,)), ("timm", (1, 0, 26))])
def test_versions_that_run_what_a_file_says_are_not_allowed(package: str, first: tuple[int, ...]) -> None:
    """Before, datasets ran scripts that lie with the data, and timm unpickled the file that a description names."""
    assert tuple(map(int, oldest(TEXT)[package].split("."))) >= first


def test_two_bounds_of_one_package_are_an_error() -> None:
    assert oldest('a = ["one[x,y]>=1.2; python_version > \'3\'", "two>=3"]\nb = ["one>=1.2"]') == {
        "one": "1.2",
        "two": "3",
    }
    with pytest.raises(ValueError, match="one must have one lower bound, got 1.2 and 1.3: write the same twice"):
        oldest('a = ["one>=1.2"]\nb = ["one>=1.3"]')
