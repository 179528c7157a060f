"""Colour a report for the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .facts import Facts

_COLORS = {"": "31", "warnings:": "33", "waived:": "2"}

_STATUS_COLORS = {
    **dict.fromkeys(("passed", "kept"), "32"),
    **dict.fromkeys(("failed", "broken"), "31"),
    **dict.fromkeys(("rehearsed", "skipped", "unchecked", "changed"), "33"),
}

_RULE = re.compile(rf"(?:{'|'.join(map(re.escape, RULES))})(?=[ :]|$)")

_STATUS = re.compile(rf"(?<=  )(?:{'|'.join(_STATUS_COLORS)})(?=  |$)")


def paint(lines: Iterable[str], report: Facts) -> list[str]:
    """Colour the verdict, the rules and the statuses in the lines of a rendered report."""
    verdict, *others = lines
    painted = [_painted(verdict, "1;32" if report.ok else "1;31")]
    section = ""
    for line in others:
        if line in _COLORS or line.startswith(("stage ", "promise ")):
            section = line or section
        if section in _COLORS:
            color = _COLORS[section]
            word, color = _RULE.match(line), _COLORS[section]
        else:
            word = _STATUS.search(line)
            color = _STATUS_COLORS[word[0]] if word else ""
        painted.append(
            f"{line[: word.start()]}{_painted(word[0], color)}{line[word.end() :]}" if word else line
        )
    return painted


def _painted(text: str, color: str) -> str:
    return f"\x1b[{color}m{text}\x1b[0m"
