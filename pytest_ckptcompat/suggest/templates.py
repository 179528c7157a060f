"""Keys with their numbers taken out: the layers of a model, seen as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...] | None
Shapes: TypeAlias = Mapping[str, Shape]
Template: TypeAlias = tuple[str, ...]
"""Parts of a key between its dots, with ``#`` for every number."""
Indices: TypeAlias = tuple[str, ...]

_NUMBER = re.compile(r"[0-9]+")


def template(key: str) -> Template:
    """``layers.3.attn2.weight`` as ``("layers", "#", "attn#", "weight")``."""
    return tuple(_NUMBER.sub("#", key).split("."))


def indices(key: str) -> Indices:
    """The numbers that `template` took out, in order."""
    return tuple(_NUMBER.findall(key))


def by_template(keys: Iterable[str], numbers_out: bool) -> dict[Template, dict[Indices, str]]:
    """The keys, by template and then by the numbers taken out; each by itself if none are taken out."""
    families: dict[Template, dict[Indices, str]] = {}
    for key in keys:
        if "#" not in key:
            parts, numbers = (template(key), indices(key)) if numbers_out else (tuple(key.split(".")), ())
            families.setdefault(parts, {})[numbers] = key
    return families


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
