"""Find rename operators that give keys their new names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from .steps import Step, renaming
from .templates import Shapes, Substitution, Template, indices, template

if TYPE_CHECKING:
    from .budget import Budget

MOST_STEPS = 40

Renamed = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Move:
    """New names of keys, and the steps that give them."""

    names: dict[str, str]
    steps: list[Step]


def move(
    names: Mapping[str, str],
    substitution: Substitution | None,
    current: Shapes,
    model: Shapes,
    budget: Budget,
) -> Move | None:
    """Find steps that rename keys of the checkpoint, and leave keys that are already right.

    Args:
        names: key -> new name.
        substitution: the substitution that explains all names, if there is one: a single step may do.
        current: the checkpoint's keys.
        model: the model's keys.
        budget: the time budget.

    Returns:
        The move, or None if it takes more than `MOST_STEPS` steps or separates a layer's tensors.
    """
    settled = [key for key in current if key in model and key not in names]
    if _tears(names, frozenset(settled)):
        return None
    for step, renamed in _whole(substitution, *next(iter(names.items()))) if substitution else ():
        done = {key: renamed(key) for key in current}
        if all(done[key] == name for key, name in names.items()) and all(done[key] == key for key in settled):
            changes = _changes(done)
            if changes is not None and not _collide(changes, current):
                return Move(changes, [step])
    return _one_by_one(names, current, budget)


def _tears(names: Mapping[str, str], settled: Collection[str]) -> bool:
    """Return whether a bias or a statistic would leave or join a layer whose weight stays."""
    for key, name in names.items():
        (old, _, leaf), (new, _, other) = key.rpartition("."), name.rpartition(".")
        if old != new and leaf == other and (f"{old}.weight" in settled or f"{new}.weight" in settled):
            return True
    return False


def _one_by_one(names: Mapping[str, str], current: Collection[str], budget: Budget) -> Move | None:
    left, keys = dict(names), list(current)
    steps: list[Step] = []
    while left:
        if len(steps) == MOST_STEPS:
            return None
        firsts = _by_first(keys)
        there = frozenset(keys)
        found = next((found for key in left if (found := _step(key, left, firsts, there, budget))), None)
        if found is None:
            return None
        step, changes = found
        steps.append(step)
        keys = [changes.get(key, key) for key in keys]
        left = {key: name for key, name in left.items() if key not in changes}
    return Move(dict(names), steps)


def _step(
    key: str,
    left: Mapping[str, str],
    firsts: Mapping[str, list[str]],
    there: Collection[str],
    budget: Budget,
) -> tuple[Step, dict[str, str]] | None:
    """Find a step that renames this key, and as many others as possible without harm."""
    for step, renamed in _single(key, left[key]):
        budget.check()
        changes = _changes({each: renamed(each) for each in _near(step.arguments[0], firsts)})
        if (
            changes
            and all(left.get(each) == name for each, name in changes.items())
            and not _collide(changes, there)
        ):
            return step, changes
    return None


def _by_first(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys by their first part."""
    firsts: dict[str, list[str]] = {}
    for key in keys:
        firsts.setdefault(key.partition(".")[0], []).append(key)
    return firsts


def _near(pattern: str, firsts: Mapping[str, list[str]]) -> Iterable[str]:
    """Return the keys that a pattern may match."""
    first = pattern.partition(".")[0]
    return chain.from_iterable(firsts.values()) if "*" in first else firsts.get(first, [])


def _changes(done: Mapping[str, str | None]) -> dict[str, str] | None:
    changes = {key: name for key, name in done.items() if name != key}
    return None if None in changes.values() else changes  # type: ignore[return-value]


def _collide(changes: Mapping[str, str], keys: Collection[str]) -> bool:
    names = list(changes.values())
    return len(set(names)) < len(names) or any(name in keys and name not in changes for name in names)


def _whole(substitution: Substitution, key: str, name: str) -> Iterator[tuple[Step, Renamed]]:
    """Yield single steps that may do the whole substitution, of which `key` to `name` is a part."""
    old, new = _glob(substitution.old), _glob(substitution.new)
    if substitution.prefix is None:
        if new:
            yield from _rename(f"*.{old}.*", f"*.{new}.*")
            yield from _rename(f"*.{old}", f"*.{new}")
        else:
            yield from _rename(f"*.{old}.*", "*.*")
        return
    if not substitution.prefix and not new:
        removed = "".join(f"{part}." for part in key.split(".")[: len(substitution.old)])
        yield Step("strip_prefix", (removed,)), lambda each: each.removeprefix(removed)
    if not substitution.prefix and not old:
        added = "".join(f"{part}." for part in name.split(".")[: len(substitution.new)])
        yield Step("add_prefix", (added,)), lambda each: added + each
    before, after = substitution.prefix + substitution.old, substitution.prefix + substitution.new
    if before and after:
        this, that = key.split(".")[: len(before)], name.split(".")[: len(after)]
        if "#" in "".join(before):  # it may be only one layer
            yield from _rename(f"{'.'.join(this)}.*", f"{'.'.join(that)}.*")
        yield from _rename(f"{_glob(before)}.*", f"{_glob(after)}.*")
        yield from _rename(_glob(before), _glob(after))


def _single(key: str, name: str) -> Iterator[tuple[Step, Renamed]]:
    """Yield steps that rename this key: with its siblings in all layers, with its siblings, alone."""
    old, new = key.split("."), name.split(".")
    shortest = min(len(old), len(new)) - 1
    common = next((at for at in range(shortest) if old[-1 - at] != new[-1 - at]), shortest)
    for length in range(common, -1, -1):
        before, after = ".".join(old[: len(old) - length]), ".".join(new[: len(new) - length])
        rest = ".*" if length else ""
        if indices(before) and indices(before) == indices(after):
            yield from _rename(_glob(template(before)) + rest, _glob(template(after)) + rest)
        if length and "*" not in before + after:
            yield from _rename(before + rest, after + rest)
    yield Step("rename", (key, name)), lambda each: name if each == key else each


def _rename(pattern: str, to: str) -> Iterator[tuple[Step, Renamed]]:
    """Yield the step, unless the names themselves contain glob characters."""
    if not set("?[]") & set(pattern + to) and pattern.count("*") == to.count("*"):
        yield Step("rename", (pattern, to)), renaming(pattern, to)


def _glob(parts: Template) -> str:
    return ".".join(parts).replace("#", "*")
