"""Steps: the operators of a recipe before they are built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Step:
    """An operator's name in `pytest_ckptcompat.operators`, and its arguments."""

    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def renaming(pattern: str, to: str) -> Callable[[str], str | None]:
    """Return what ``rename(pattern, to)`` does to a key; None means that the stars are ambiguous.

    Each star of `to` stands for the text of the star at the same place in the pattern.
    """
    pieces, targets = pattern.split("*"), to.split("*")
    literals = [re.escape(piece) for piece in pieces]
    lazy, greedy = (re.compile(star.join(literals), re.DOTALL) for star in ("(.*?)", "(.*)"))

    def renamed(key: str) -> str | None:
        if not key.startswith(pieces[0]):
            return key
        first, last = lazy.fullmatch(key), greedy.fullmatch(key)
        if first is None or last is None:
            return key
        if first.groups() != last.groups():
            return None
        return targets[0] + "".join(a + b for a, b in zip(first.groups(), targets[1:], strict=True))

    return renamed
