"""The report of a load."""

from __future__ import annotations

from dataclasses import dataclass

from condconv.errors import few


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did; `print` it for a summary.

    Attributes:
        source: What was read.
        matched: How names were matched.
        copied: Names of the network's tensors that were copied, experts and routing included.
        upcycled: Conditional layers that started from one static kernel (or one of each checkpoint).
        skipped: Names of the network that `skip` left unchanged.
        notes: Further remarks.
    """

    source: str
    matched: str
    copied: tuple[str, ...]
    upcycled: tuple[str, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a few lines."""
        lines = [f"{self.source}: {len(self.copied)} tensors copied, matched {self.matched}"]
        if self.upcycled:
            lines.append(f"experts made from static kernels in {len(self.upcycled)} layers, {few(self.upcycled)}")
        if self.skipped:
            lines.append(f"left as they were: {few(self.skipped)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
