"""What the scripts that write a page of the documentation share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

TEMPLATES = Path(__file__).resolve().parent / "templates"


def filled(name: str, slots: Mapping[str, Callable[[], str]]) -> str:
    """Return a template with each of its slots, a line `{{ slot }}`, replaced.

    Args:
        name: A file in scripts/templates.
        slots: Returns the text of each slot, without a newline at its end.

    Raises:
        KeyError: The template has a slot of another name.
    """
    template = (TEMPLATES / name).read_text(encoding="utf-8")
    return re.sub(r"^\{\{ (.+) \}\}$", lambda slot: slots[slot[1]](), template, flags=re.MULTILINE)


def write_or_check(page: Path, make: Callable[[], str], draw: Callable[[], None] = lambda: None) -> int:
    """Write a page, or with the argument `--check` say whether it is up to date.

    Args:
        page: The file.
        make: Returns what it should hold.
        draw: Writes the page's pictures, which are not checked.

    Returns:
        0 when it is written or up to date, 1 otherwise.
    """
    parser = argparse.ArgumentParser(description=f"Write {page.name}.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    if not parser.parse_args().check:
        page.write_text(make(), encoding="utf-8")
        draw()
    elif page.read_text(encoding="utf-8") != make():
        print(f"{page} is out of date: run python {sys.argv[0]}", file=sys.stderr)
        return 1
    return 0
