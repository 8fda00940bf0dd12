"""Draw a page that `condconv report` wrote, as the picture of docs/report.md.

`python scripts/draw_report.py docs/assets/report.html docs/assets/report.png`. Needs playwright and a Chromium of the
system.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(page: str, picture: str) -> None:
    """Draw the top of a page.

    Args:
        page: The HTML file.
        picture: PNG file to write.

    Raises:
        SystemExit: No Chromium is installed.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("a Chromium must be installed, found none: install the package chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 1560})
        tab.goto(Path(page).resolve().as_uri())
        tab.wait_for_selector("#chart-effective .main-svg")
        tab.screenshot(path=picture)
        chromium.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
