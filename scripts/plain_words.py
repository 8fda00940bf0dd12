"""Find habits of phrase that make a reader stop, in the documentation, docstrings and messages.

The table in CONTRIBUTING.md, "Write plain English", has more of them. Those here are sure enough for a check: none has
a use in this project that is plain.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLAIN = (
    (
        r"\bone (?!if |with |in |give |for )[a-z]+ an? (?:expert|example|class|image|layer|row|file|line)\b",
        "per",
    ),
    (r"\b(?:one|a) [a-z]+ (?:a|an) (?:dimension|spatial dimension|block|epoch|family|format|runtime|tap)\b", "per"),
    (r"\b(?:go|goes|going|went|gone) on\b", "resume, continue"),
    (r"\bin times of\b", "multiplier, times"),
    (r"(?<!there\s)(?<!where\s)\b(?:is|are|was|were) no (?!longer\b|more\b)", "is not a"),
    (r"\bso many\b", "this many, the number"),
    (r"\blikewise\b", "too, in the same way"),
    (r"\bbeside\b", "besides, next to, compared with"),
    (r"\bof ours\b", "of this package"),
    (r"\bof yours\b", "your"),
    (r"\banew\b", "again"),
    (r"\bmend(?:s|ed|ing)?\b", "fix"),
    (r"\bas good as nothing\b", "hardly anything"),
    (r"\b(?:is|are|was|were) told\b", "is reported, is given"),
    (r"\btold apart\b|\btells? apart\b", "distinguish"),
    (r"\ba thing that\b", "name the thing"),
    (r"\bwhat is asked\b", "what is requested"),
    (r"\bcommonest\b", "most common"),
    (r"\bfor ever\b", "forever"),
    (r"\bever new\b", "always different"),
    (r"\bthrice\b", "three times"),
    (r"\bonce more\b", "again"),
    (r"\bnobody\b", "no one, or the passive"),
    (r"\ball there is\b", "only"),
    (r"\bfor want of\b", "without"),
    (r"\bputs? out\b", "output, return"),
    (r"\balike for all\b", "with one mixture for all, equally for all"),
    (r"\bon a par\b", "as good as"),
    (r"\bat work\b", "running, used"),
)
"""What is searched for, without regard to case and line breaks, and the plain form."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Return the texts of a file that people read, each with the number of its first line."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value
    else:
        # The table of habits quotes them.
        yield 1, re.sub(r"^\| .*", "", content, flags=re.MULTILINE) if path.name == "CONTRIBUTING.md" else content


def habits(path: Path) -> Iterator[str]:
    """Return a line for each habit in a file: where it is, what was found, and the plain form."""
    for first, text in texts(path):
        for pattern, plain in PLAIN:
            for found in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
                line = first + text.count("\n", 0, found.start())
                words = " ".join(found.group().split())
                yield f"{path.relative_to(ROOT)}:{line}: '{words}': write '{plain}'"


def main() -> int:
    """Print what was found.

    Returns:
        1 if there was anything.
    """
    pages = (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    found = [each for path in sorted((*pages, *(ROOT / "src").rglob("*.py"))) for each in habits(path)]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
