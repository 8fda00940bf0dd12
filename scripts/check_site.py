"""Check that a built documentation site loads nothing from other hosts.

`python scripts/check_site.py site/`. Links that a reader may follow are fine; scripts, styles, fonts and
pictures must be the site's own, so that it can be read offline and no other host learns of a reader.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

CSS_REQUEST = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")


class Requests(HTMLParser):
    """Collects the addresses that a browser fetches on its own while it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address if this element loads one from elsewhere."""
        named = dict(attrs)
        loads = [named.get("src"), named.get("srcset"), named.get("data")]
        # A canonical link is only a statement; every other <link> is fetched.
        if tag == "link" and named.get("rel") != "canonical":
            loads.append(named.get("href"))
        self.found += [one for one in loads if one and re.match(r"(https?:)?//", one)]


def external_requests(site: Path) -> list[str]:
    """List what the pages and styles of a site would fetch from other hosts.

    Args:
        site: Folder of the built site.

    Returns:
        Lines `file: address`.
    """
    found = []
    for path in sorted(site.rglob("*.html")):
        page = Requests()
        page.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {address}" for address in page.found]
    for path in sorted(site.rglob("*.css")):
        addresses = CSS_REQUEST.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {address}" for address in addresses]
    return found


def main(folder: str) -> None:
    """Check one site.

    Args:
        folder: Folder of the built site.

    Raises:
        SystemExit: The site has no page, or loads something from another host.
    """
    site = Path(folder)
    if not (site / "index.html").is_file():
        sys.exit(f"`folder` must hold a built site, got {folder}: run `mkdocs build` first")
    found = external_requests(site)
    if found:
        sys.exit("the site loads from other hosts:\n  " + "\n  ".join(found))
    print("documentation: no page loads anything from another host")


if __name__ == "__main__":
    main(*sys.argv[1:])
