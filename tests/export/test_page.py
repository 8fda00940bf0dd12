"""docs/export.md and docs/export-checks.md, and how their tables are put in."""

import re

import pytest

from condconv.export import FORMATS
from scripts.export_tables import fill
from scripts.make_export import PAGE as EXPORT_PAGE
from scripts.make_export import PAGES, page

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
    text = EXPORT_PAGE.read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `([a-z-]+)` \| `\.[^|]*\|[^|]*\|[^|]*\| (any|one) \|", text, re.MULTILINE))
    assert said == {name: "one" if writer.WHY_ONE_SIZE else "any" for name, writer in FORMATS.items()}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_the_tables_of_the_plan_and_the_results(path):
    assert page(path) == path.read_text(encoding="utf-8"), "run python scripts/make_export.py"
