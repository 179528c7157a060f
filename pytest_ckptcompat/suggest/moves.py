"""Find operators that give keys their new names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ckptcompat.recipes.operators import add_prefix, rename, strip_prefix

from .templates import by_first, indices, near, starred

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from pytest_ckptcompat.recipes.operators.rename import Renaming

    from .budget import Budget
    from .templates import Shapes, Substitution, Template

MOST_OPERATORS = 40


@dataclass(frozen=True, slots=True)
class Move:
    """New names of keys, and the operators that give them."""

    names: dict[str, str]
    operators: list[Renaming]


def move(
    names: Mapping[str, str],
    substitution: Substitution | None,
    current: Shapes,
    model: Shapes,
    budget: Budget,
) -> Move | None:
    """Rename keys of the checkpoint, and leave keys that are already right.

    If a substitution explains all names, a single operator may do. Return None if it takes more than
    `MOST_OPERATORS`, or separates a layer's tensors.
    """
    settled = frozenset(key for key in current if key in model and key not in names)
    if _tears(names, settled):
        return None
    for operator, renamed in _whole(substitution, *next(iter(names.items()))) if substitution else ():
        done = {key: renamed(key) for key in current}
        if all(done[key] == name for key, name in names.items()) and all(done[key] == key for key in settled):
            changes = _changes(done)
            if changes is not None and not _collide(changes, current):
                return Move(changes, [operator])
    return _one_by_one(names, current, budget)


def _tears(names: Mapping[str, str], settled: Collection[str]) -> bool:
    """Return whether a bias or a statistic would leave or join a layer whose weight stays."""
    for key, name in names.items():
        (old, _, leaf), (new, _, other) = key.rpartition("."), name.rpartition(".")
        if old != new and leaf == other and (f"{old}.weight" in settled or f"{new}.weight" in settled):
            return True
    return False


def _one_by_one(names: Mapping[str, str], current: Collection[str], budget: Budget) -> Move | None:
    """Rename the first key, with as many others as possible, until none is left."""
    left, keys = dict(names), list(current)
    operators: list[Renaming] = []
    while left:
        if len(operators) == MOST_OPERATORS:
            return None
        firsts, there = by_first(keys), frozenset(keys)
        for pattern, to in (pair for key in left for pair in _single(key, left[key])):
            budget.check()
            if (
                (changes := _renamed(pattern, to, firsts, there))
                and all(left.get(key) == name for key, name in changes.items())
                and not _collide(changes, there)
            ):
                break
        else:
            return None
        operators.append(rename(pattern, to))
        keys = [changes.get(key, key) for key in keys]
        left = {key: name for key, name in left.items() if key not in changes}
    return Move(dict(names), operators)


def _renamed(
    pattern: str, to: str, firsts: Mapping[str, list[str]], there: Collection[str]
) -> dict[str, str] | None:
    if pattern in there:  # it then matches no other key
        return {pattern: to}
    renamed = _renamer(pattern, to)
    return _changes({key: renamed(key) for key in near(pattern, firsts)})


def _changes(done: Mapping[str, str | None]) -> dict[str, str] | None:
    changes = {key: name for key, name in done.items() if name != key}
    return None if None in changes.values() else changes  # type: ignore[return-value]


def _collide(changes: Mapping[str, str], keys: Collection[str]) -> bool:
    names = list(changes.values())
    return len(set(names)) < len(names) or any(name in keys and name not in changes for name in names)


def _whole(
    substitution: Substitution, key: str, name: str
) -> Iterator[tuple[Renaming, Callable[[str], str | None]]]:
    """Yield single operators that may do the whole substitution, of which `key` to `name` is a part."""
    prefix, old, new = substitution.prefix, substitution.old, substitution.new
    if prefix == () and not new:
        stripped = strip_prefix("".join(f"{part}." for part in key.split(".")[: len(old)]))
        yield stripped, stripped.named
    if prefix == () and not old:
        added = add_prefix("".join(f"{part}." for part in name.split(".")[: len(new)]))
        yield added, added.named
    for pattern, to in _patterns(substitution, key, name):
        if _fits(pattern, to):
            yield rename(pattern, to), _renamer(pattern, to)


def _patterns(substitution: Substitution, key: str, name: str) -> Iterator[tuple[str, str]]:
    prefix = substitution.prefix
    if prefix is None:
        old, new = _glob(substitution.old), _glob(substitution.new)
        yield f"*.{old}.*", f"*.{new}.*" if new else "*.*"
        if new:
            yield f"*.{old}", f"*.{new}"
        return
    before, after = prefix + substitution.old, prefix + substitution.new
    if before and after:
        if "#" in "".join(before):  # it may be only one layer
            this, that = key.split(".")[: len(before)], name.split(".")[: len(after)]
            yield f"{'.'.join(this)}.*", f"{'.'.join(that)}.*"
        yield f"{_glob(before)}.*", f"{_glob(after)}.*"
        yield _glob(before), _glob(after)


def _single(key: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield patterns that rename this key: with its siblings in all layers, with its siblings, alone."""
    old, new = key.split("."), name.split(".")
    shortest = min(len(old), len(new)) - 1
    common = next((at for at in range(shortest) if old[-1 - at] != new[-1 - at]), shortest)
    for length in range(common, -1, -1):
        before, after = ".".join(old[: len(old) - length]), ".".join(new[: len(new) - length])
        rest = ".*" if length else ""
        pairs = []
        if indices(before) and indices(before) == indices(after):
            pairs.append((starred(before) + rest, starred(after) + rest))
        if length and "*" not in before + after:
            pairs.append((before + rest, after + rest))
        yield from (pair for pair in pairs if _fits(*pair))
    if "*" not in name:
        yield key, name


def _fits(pattern: str, to: str) -> bool:
    """Return whether the names themselves contain no glob characters."""
    return not set("?[]") & set(pattern + to) and pattern.count("*") == to.count("*")


def _glob(parts: Template) -> str:
    return ".".join(parts).replace("#", "*")


def _renamer(pattern: str, to: str) -> Callable[[str], str | None]:
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
