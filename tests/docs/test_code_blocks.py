"""Every ```python block of the README and of the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


# Libraries of others that pages show how to use. A block that imports one is compiled, and runs where it is installed.
OTHERS = ("lightning", "segmentation_models_pytorch", "transformers", "ultralytics")


class Block(NamedTuple):
    language: str
    line: int
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page with the line of their first line."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def needs_another_library(block: Block) -> bool:
    """Whether a block imports a library of others that is not installed."""
    imported = re.findall(r"^(?:import|from) (\w+)", block.text, re.MULTILINE)
    return any(name in OTHERS and find_spec(name) is None for name in imported)


PYTHON_PAGES = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
COMMANDS = [
    pytest.param(match[1], id=f"{name(page)}-{match[1].split()[0]}-{number}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash"
    for number, line in enumerate(block.text.splitlines(), block.line)
    if (match := re.match(r"(?:accelerate launch .* -m )?condconv (.*)", line))
]


# The page on export compiles and writes a network of the zoo.
TO_RUN = [pytest.param(page, marks=pytest.mark.slow) if page.name == "export.md" else page for page in PYTHON_PAGES]


@pytest.mark.parametrize("page", TO_RUN, ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page):
        if block.language == "python":
            # Leading newlines make a traceback name the line of the page.
            source = "\n" * (block.line - 1) + block.text
            code = compile(source, str(page), "exec", dont_inherit=True)
            if not needs_another_library(block):
                exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_missed(page: Path) -> None:
    written = re.findall(r"^\s*(?:```|~~~)\s*\{?\s*\.?(?:python|py)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    run = [block for block in blocks(page) if block.language == "python"]
    assert len(written) == len(run), "write each python block as ```python at the start of a line"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_accepted(command: str) -> None:
    """The options in the shell examples exist. Nothing is run."""
    from condconv.cli.main import create_parser

    create_parser().parse_args(shlex.split(command, comments=True))
