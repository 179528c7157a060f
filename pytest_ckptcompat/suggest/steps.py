"""Operators to be: what a recipe will be made of, before it is one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.keys import select

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator


@dataclass(frozen=True, slots=True)
class Step:
    """One operator: its name in `pytest_ckptcompat.recipes.operators`, and its arguments."""

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


def cover(chosen: Collection[str], keys: Collection[str]) -> list[str]:
    """Few patterns that match all the chosen keys and none of the other keys."""
    chosen = dict.fromkeys(chosen)
    others = [key for key in keys if key not in chosen]
    left = dict(chosen)
    patterns = []
    while left:
        pattern, matched = _widest(next(iter(left)), left, others)
        patterns.append(pattern)
        for key in matched:
            left.pop(key, None)
    return patterns


def _widest(key: str, left: Collection[str], others: Collection[str]) -> tuple[str, list[str]]:
    """The pattern that matches the key and most others that are left; of equally wide ones, the clearest."""
    best, most, telling = key, [key], (0, 0)
    for pattern in _patterns(key):
        matched = select(pattern, left)
        says = (-pattern.count("*"), len(pattern))
        wider = len(matched) > max(len(most), 1) or (len(matched) == len(most) > 1 and says > telling)
        if wider and not select(pattern, others):
            best, most, telling = pattern, matched, says
    return best, most


def _patterns(key: str) -> Iterator[str]:
    """Globs that match the key."""
    parts = key.split(".")
    if set("*?[]") & set(key):
        return
    starred = ["*" if part.isdigit() else part for part in parts]
    for named in (parts, starred) if starred != parts else (parts,):
        for length in range(len(parts) - 1, 0, -1):
            yield f"{'.'.join(named[:length])}.*"
            yield f"{'.'.join(named[:length])}.*.{parts[-1]}"
    if starred != parts:
        yield ".".join(starred)
    for length in range(2, len(parts)):  # every bias would be too much said
        yield f"*.{'.'.join(parts[-length:])}"
