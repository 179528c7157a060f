"""Templates: keys without their numbers, so that a model's layers look the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from pytest_ckptcompat.recipes.per_tensor import Shape, shape

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
