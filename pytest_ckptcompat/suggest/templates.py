"""Keys as patterns: templates without their numbers, and globs that match many keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.recipes.per_tensor import Shape, shape

from .budget import Budget

if TYPE_CHECKING:
    from collections.abc import Collection

Shapes: TypeAlias = Mapping[str, Shape]
Template: TypeAlias = tuple[str, ...]
"""The parts of a key between dots, with ``#`` for every number that was taken out."""
Indices: TypeAlias = tuple[str, ...]
Families: TypeAlias = dict[Template, dict[Indices, str]]

ALL = 0
NONE = -1
_NO_INDICES: Indices = ()
_NUMBER = re.compile(r"[0-9]+")


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """Return key -> shape; None for extra state and uninitialised parameters."""
    return {key: shape(value) for key, value in tensors.items()}


def template(key: str) -> Template:
    """Turn ``layers.3.attn2.weight`` into ``("layers", "#", "attn#", "weight")``."""
    return tuple(_NUMBER.sub("#", key).split("."))


@lru_cache(1 << 16)  # a search asks for the same keys again and again
def indices(key: str) -> Indices:
    """Return the numbers that `template` takes out, in order."""
    return tuple(_NUMBER.findall(key))


def by_template(keys: Iterable[str], most: int) -> Families:
    """Group keys by template, then by the numbers taken out: ``ALL``, ``NONE``, or so many from the left.

    Keys that contain ``#`` are left out.
    """
    families: Families = {}
    for key in keys:
        if "#" not in key:
            parts, numbers = tuple(key.split(".")), _NO_INDICES
            if most != NONE:
                numbers = indices(key)[: most or None]
                parts = _without_numbers(key, most)
            families.setdefault(parts, {})[numbers] = key
    return families


@lru_cache(1 << 16)
def _without_numbers(key: str, most: int) -> Template:
    return tuple(_NUMBER.sub("#", key, count=most).split("."))


@dataclass(frozen=True, slots=True)
class Substitution:
    """A replacement of parts of a key.

    Attributes:
        prefix: the parts before; None for any, where the first match counts.
        old: the replaced parts.
        new: the new parts, with equally many ``#``.
    """

    prefix: Template | None
    old: Template
    new: Template

    def __call__(self, parts: Template) -> Template | None:
        """Return the new template, or None if the substitution does not apply."""
        if self.prefix is not None:
            start = len(self.prefix)
            whole = self.prefix + self.old
            if parts[: len(whole)] != whole or len(parts) == len(whole) == start:
                return None
        else:
            starts = (at for at in range(len(parts)) if parts[at : at + len(self.old)] == self.old)
            start = next(starts, -1)
            if start < 0:
                return None
        changed = (*parts[:start], *self.new, *parts[start + len(self.old) :])
        return changed or None


class Places:
    """Templates indexed by beginning and by part, so that few are tried for a substitution."""

    def __init__(self, families: Iterable[Template]) -> None:
        self._beginnings: dict[Template, list[Template]] = {}
        self._with: dict[str, list[Template]] = {}
        for parts in families:
            for end in range(len(parts) + 1):
                self._beginnings.setdefault(parts[:end], []).append(parts)
            for part in dict.fromkeys(parts):
                self._with.setdefault(part, []).append(parts)

    def of(self, substitution: Substitution) -> list[Template]:
        """Return the templates that the substitution may change."""
        if substitution.prefix is None:
            return min((self._with.get(part, []) for part in substitution.old), key=len, default=[])
        return self._beginnings.get(substitution.prefix + substitution.old, [])


# -- globs --------------------------------------------------------------------------------------------------


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
    return _NUMBER.sub("*", key)


def matches_only(glob: str, chosen: Collection[str], keys: Collection[str]) -> bool:
    """Return whether a glob matches the chosen keys and no others."""
    return set(select(glob, keys)) == set(chosen)


_EXACT = re.compile(r"[^*]+\.\*(\.[^*.]+)?|\*(\.[^*.]+){2,}", re.DOTALL)
"""Globs that match exactly the keys that have them among their `_patterns`."""


@lru_cache(1 << 16)  # asked for several times while a cover is found
def _patterns(key: str) -> tuple[str, ...]:
    """Return globs that match the key."""
    parts = key.split(".")
    starred = ["*" if _NUMBER.fullmatch(part) else part for part in parts]
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
