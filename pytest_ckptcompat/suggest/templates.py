"""Keys with their numbers taken out: the layers of a model, seen as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...] | None
Shapes: TypeAlias = Mapping[str, Shape]
Template: TypeAlias = tuple[str, ...]
"""Parts of a key between its dots, with ``#`` for every number that was taken out."""
Indices: TypeAlias = tuple[str, ...]
Families: TypeAlias = dict[Template, dict[Indices, str]]

ALL = 0
NONE = -1
_NO_INDICES: Indices = ()
_NUMBER = re.compile(r"[0-9]+")


def template(key: str) -> Template:
    """``layers.3.attn2.weight`` as ``("layers", "#", "attn#", "weight")``."""
    return tuple(_NUMBER.sub("#", key).split("."))


@lru_cache(1 << 16)  # a search asks of the same keys again and again
def indices(key: str) -> Indices:
    """The numbers that `template` took out, in order."""
    return tuple(_NUMBER.findall(key))


def by_template(keys: Iterable[str], most: int) -> Families:
    """The keys, by template and then by the numbers taken out.

    Args:
        keys: of a state dict; those with a ``#`` of their own are left out.
        most: how many numbers are taken out of each key, the first ones: ``ALL``, ``NONE``, or a count.
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
    """Parts of a key replaced by others.

    Attributes:
        prefix: the parts before; None: any, and the first place counts.
        old: the parts that are replaced.
        new: what stands there afterwards, with as many ``#``.
    """

    prefix: Template | None
    old: Template
    new: Template

    def __call__(self, parts: Template) -> Template | None:
        """The template afterwards, or None where the substitution has nothing to do."""
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
    """Templates by where they begin and by the parts in them, so that few are tried for a substitution."""

    def __init__(self, families: Iterable[Template]) -> None:
        self._beginnings: dict[Template, list[Template]] = {}
        self._with: dict[str, list[Template]] = {}
        for parts in families:
            for end in range(len(parts) + 1):
                self._beginnings.setdefault(parts[:end], []).append(parts)
            for part in dict.fromkeys(parts):
                self._with.setdefault(part, []).append(parts)

    def of(self, substitution: Substitution) -> list[Template]:
        """Those that the substitution may change."""
        if substitution.prefix is None:
            return min((self._with.get(part, []) for part in substitution.old), key=len, default=[])
        return self._beginnings.get(substitution.prefix + substitution.old, [])
