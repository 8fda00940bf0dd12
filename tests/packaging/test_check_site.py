"""The check that the documentation loads nothing from other hosts finds what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_site import external_requests, main

OWN_PAGE = """
<link rel="stylesheet" href="assets/main.css">
<link rel="canonical" href="https://example.org/">
<script src="../assets/main.js"></script>
<a href="https://example.org/paper">the paper</a>
"""


def write_site(folder: Path, page: str = OWN_PAGE, css: str = "a { background: url(own.svg) }") -> Path:
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "main.css").write_text(css, encoding="utf-8")
    return folder


def test_own_files_and_links_pass(tmp_path: Path) -> None:
    assert external_requests(write_site(tmp_path)) == []


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://example.org/a.js"></script>',
        '<img src="//example.org/a.png">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<link rel="preconnect" href="https://example.org">',
    ],
)
def test_foreign_elements_are_found(tmp_path: Path, element: str) -> None:
    (found,) = external_requests(write_site(tmp_path, OWN_PAGE + element))
    assert found.startswith("index.html: ")
    assert "//example.org" in found


@pytest.mark.parametrize(
    "rule",
    [
        "@import 'https://example.org/a.css';",
        "@import url(//example.org/a.css);",
        'a { src: url("http://x.org/f") }',
    ],
)
def test_foreign_styles_are_found(tmp_path: Path, rule: str) -> None:
    (found,) = external_requests(write_site(tmp_path, css=rule))
    assert found.startswith("main.css: ")


def test_a_folder_without_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="`folder` must hold a built site, got .*: run `mkdocs build` first"):
        main(str(tmp_path))


def test_a_site_with_foreign_elements_is_refused(tmp_path: Path) -> None:
    write_site(tmp_path, '<script src="https://example.org/a.js"></script>')
    with pytest.raises(SystemExit, match="index.html: https://example.org/a.js"):
        main(str(tmp_path))
