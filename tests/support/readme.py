"""The fenced blocks of the README and of the pages in ``docs``, by the name in the comment before them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        name: what an HTML comment on the line before it says, or ``""``.
        language: what stands behind the fence.
        text: the lines between the fences.
    """

    name: str
    language: str
    text: str


BLOCKS = [
    Block(*found)
    for text in (TEXT, *PAGES.values())
    for found in re.findall(r"(?:^<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]


def block(name: str) -> str:
    """The text of the one block that has this name."""
    (found,) = [each.text for each in BLOCKS if each.name == name]
    return found


def written(language: str) -> list[Block]:
    """All blocks of a language, in their order."""
    return [each for each in BLOCKS if each.language == language]


def commands(text: str) -> list[str]:
    """The lines of a console block that a user types; what is not typed is output."""
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def normal(text: str) -> str:
    """Without what hangs on the machine's arithmetic, and the spaces and line ends that follow from it."""
    return " ".join(re.sub(r"max \|Δ\| \S+", "max", text).replace("-", "").split())
