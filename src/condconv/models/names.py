"""Names of networks: `<family>_<size>` for a static one, `<family>_cc_<size>_<E>e` with E experts."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from condconv.errors import UsageError, shown
from condconv.models.families import FAMILIES, Family


@dataclass(frozen=True)
class Name:
    """A parsed name.

    Attributes:
        family: Family of the network.
        size: Width in percent, or the family's name of the size.
        num_experts: E; `None` for a static network.
    """

    family: Family
    size: str
    num_experts: int | None

    def __str__(self) -> str:
        """Return the name."""
        if self.num_experts is None:
            return f"{self.family.name}_{self.size}"
        return f"{self.family.name}_cc_{self.size}_{self.num_experts}e"


def list_models() -> list[str]:
    """Return the names of the paper's networks and those for small images; other sizes and numbers work too."""
    return [
        str(Name(family, size, experts))
        for family in FAMILIES.values()
        for size, numbers in family.listed.items()
        for experts in (None, *numbers)
    ]


def parse_name(name: str, argument: str = "name") -> Name:
    """Parse a name.

    Args:
        name: Name of a network.
        argument: The argument that has the name, for the message.

    Raises:
        UsageError: There is no network of this name; the message has similar names.
    """
    if not isinstance(name, str):
        raise UsageError(f"`{argument}` must be a text, got {shown(name)}: condconv.list_models() has the names")
    for family in FAMILIES.values():
        pattern = rf"{family.name}_(?:(?P<static>{family.sizes})|cc_(?P<size>{family.sizes})_(?P<experts>[1-9][0-9]*)e)"
        match = re.fullmatch(pattern, name)
        if match is not None and match["static"] != "000" and match["size"] != "000":
            experts = match["experts"]
            return Name(family, match["static"] or match["size"], None if experts is None else int(experts))
    near = difflib.get_close_matches(name[:100], list_models(), n=4, cutoff=0.5) or list_models()[:4]
    raise UsageError(
        f"`{argument}` must be one of condconv.list_models(), such as {', '.join(near)}, got {shown(name)}: take one "
        "of these"
    )
