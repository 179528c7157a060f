"""Find few globs that match many keys."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property, lru_cache
from itertools import chain
from math import inf
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.keys import select

from .budget import Budget

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


class Globs:
    """Globs over keys. They are counted and not matched, so that the cost is linear in the keys."""

    def __init__(self, keys: Iterable[str], budget: Budget | None = None) -> None:
        self._keys = frozenset(keys)
        self._budget = budget or Budget(inf)

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(chain.from_iterable(map(_patterns, self._budget.each(self._keys))))

    @cached_property
    def _firsts(self) -> dict[str, list[str]]:
        return by_first(self._keys)

    def cover(self, chosen: Iterable[str]) -> list[str]:
        """Return few patterns that match all chosen keys and no other keys."""
        left = dict.fromkeys(chosen)
        if len(left) < 2:
            return list(left)
        matched: dict[str, list[str]] = {}
        for key in self._budget.each(left):
            for pattern in _patterns(key):
                matched.setdefault(pattern, []).append(key)
        counts = {pattern: len(keys) for pattern, keys in matched.items()}
        free = {pattern for pattern, count in counts.items() if count == self._counts[pattern]}
        free -= self._keys  # a pattern that is itself a key matches only that key
        everything = frozenset(left)
        patterns = []
        while left:
            self._budget.check()
            key = next(iter(left))
            pattern = self._widest(key, counts, free, everything)
            patterns.append(pattern)
            for each in matched[pattern] if pattern != key else [key]:
                if each in left:
                    del left[each]
                    for other in _patterns(each):
                        counts[other] -= 1
        return patterns

    def _widest(self, key: str, counts: Mapping[str, int], free: set[str], chosen: frozenset[str]) -> str:
        """Return the pattern that matches the key and most other remaining keys; of several, the clearest."""
        safe = not set("*?[]") & set(key)
        wide = [pattern for pattern in _patterns(key) if safe and pattern in free and counts[pattern] > 1]
        for pattern in sorted(
            wide, key=lambda each: (counts[each], -each.count("*"), len(each)), reverse=True
        ):
            if _EXACT.fullmatch(pattern) or chosen.issuperset(select(pattern, near(pattern, self._firsts))):
                return pattern
            free.discard(pattern)  # its stars span several parts of another key
        return key


def by_first(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys by their first part."""
    firsts: dict[str, list[str]] = {}
    for key in keys:
        firsts.setdefault(_first(key), []).append(key)
    return firsts


def near(pattern: str, firsts: Mapping[str, list[str]]) -> list[str]:
    """Return the keys, grouped by their first part, that a pattern may match."""
    first = _first(pattern)
    return [*chain.from_iterable(firsts.values())] if "*" in first else firsts.get(first, [])


def _first(key: str) -> str:
    return key.partition(".")[0]


def starred(key: str) -> str:
    """Return a key with stars for its numbers: ``layers.*.attn*.weight``."""
    return re.sub(r"[0-9]+", "*", key)


def matches_only(glob: str, chosen: Collection[str], keys: Collection[str]) -> bool:
    """Return whether a glob matches the chosen keys and no others."""
    return set(select(glob, keys)) == set(chosen)


_EXACT = re.compile(r"[^*]+\.\*(\.[^*.]+)?|\*(\.[^*.]+){2,}", re.DOTALL)
"""Globs that match exactly the keys that have them among their `_patterns`."""
_DIGITS = re.compile(r"[0-9]+")


@lru_cache(1 << 16)  # asked for several times while a cover is found
def _patterns(key: str) -> tuple[str, ...]:
    """Return globs that match the key."""
    parts = key.split(".")
    starred = ["*" if _DIGITS.fullmatch(part) else part for part in parts]
    found: dict[str, None] = {}
    for named in (parts, starred) if starred != parts else (parts,):
        start = ""
        for length, part in enumerate(named[:-1], 1):
            start += f"{part}."
            found[f"{start}*"] = None
            if length < len(parts) - 1:
                found[f"{start}*.{parts[-1]}"] = None
    if starred != parts:
        found[".".join(starred)] = None
    for length in range(2, len(parts)):  # "*.bias" would be too general
        found[f"*.{'.'.join(parts[-length:])}"] = None
    return tuple(found)
