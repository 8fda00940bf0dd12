"""The documentation speaks of everything there is, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import condconv
import condconv.analysis
import condconv.convert
import condconv.export
import condconv.lab.data
import condconv.lab.saved
import condconv.lab.train
import condconv.models
import condconv.nn
import condconv.ops
import condconv.weights

ROOT = Path(__file__).resolve().parents[2]
API = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "api").glob("*.md")))
DOCUMENTED = {name.rpartition(".")[2] for name in re.findall(r"^::: (condconv[\w.]*)", API, re.MULTILINE)}


def public_names() -> set[str]:
    modules = (
        condconv,
        condconv.analysis,
        condconv.convert,
        condconv.export,
        condconv.models,
        condconv.nn,
        condconv.ops,
        condconv.lab.data,
        condconv.lab.saved,
        condconv.lab.train,
        condconv.weights,
    )
    return {
        name
        for module in modules
        for name in module.__all__
        if not isinstance(getattr(module, name), ModuleType)  # a module is a page of its own
    }


def test_every_public_name_is_in_the_api_reference() -> None:
    assert public_names() - DOCUMENTED == set()


def test_every_routing_function_has_a_card() -> None:
    cards = set(re.findall(r"^## .*`(\w+)`", (ROOT / "docs/routing.md").read_text(encoding="utf-8"), re.MULTILINE))
    routings = {getattr(routing, "__name__", "") for routing in condconv.nn.ROUTING.values()}
    assert routings == cards


def test_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {condconv.__version__}\n" in citation


def test_links_of_the_root_pages_lead_somewhere() -> None:
    """MkDocs checks the pages in docs/; these are read where they are."""
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        missing = [target for target in targets if not (ROOT / target).exists()]
        assert missing == [], f"{page} links to files that do not exist"
