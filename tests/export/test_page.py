"""docs/export.md and how its tables are put in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from condconv.export import FORMATS
from scripts.export_tables import fill

PAGE = "before\n<!-- one -->\n{}<!-- end -->\nbetween\n<!-- two -->\n\n| old |\n\n<!-- end -->\nafter\n"
FILLED = PAGE.format("\n| new |\n\n")


@pytest.mark.parametrize("old", ["", "\n", "\n\n", "\n| older |\n| still |\n\n"])
def test_a_table_takes_the_place_of_the_old_one_alone(old):
    assert fill(PAGE.format(old), {"one": "| new |\n"}) == FILLED


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("no marks\n", 0),
        ("<!-- one -->\n\n<!-- two -->\n<!-- end -->\n", 0),  # its own end is missing
        (PAGE.format("") + PAGE.format(""), 2),
    ],
)
def test_a_page_without_one_place_for_a_table_is_an_error(text, count):
    message = f"`text` must have one pair of marks for one, got {count}: fix the page"
    with pytest.raises(ValueError, match=re.escape(message)):
        fill(text, {"one": "| new |\n"})


def test_the_page_says_which_formats_have_free_sizes():
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `([a-z-]+)` \| `\.[^|]*\|[^|]*\|[^|]*\| (any|one) \|", page, re.MULTILINE))
    assert said == {name: "one" if writer.WHY_ONE_SIZE else "any" for name, writer in FORMATS.items()}


def test_the_page_has_the_tables_of_the_plan_and_the_results():
    script = Path(__file__).resolve().parents[2] / "scripts" / "make_export.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0
