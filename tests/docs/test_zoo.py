"""The pages of the networks are those that the registry makes."""

import pytest

from scripts import make_zoo


@pytest.mark.slow
def test_the_pages_are_up_to_date() -> None:
    for path, made in ((make_zoo.PAGE, make_zoo.page()), (make_zoo.PAPER_PAGE, make_zoo.paper())):
        assert path.read_text(encoding="utf-8") == made, "run python scripts/make_zoo.py"
