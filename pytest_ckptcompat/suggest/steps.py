"""Operators to be: what a recipe will be made of, before it is one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Step:
    """One operator: its name in `pytest_ckptcompat.operators`, and its arguments."""

    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def renaming(pattern: str, to: str) -> Callable[[str], str | None]:
    """What ``rename(pattern, to)`` makes of a key: None where the stars could stand for different things.

    Each of the stars of `to` stands for what the star at the same place in the pattern stood for.
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
