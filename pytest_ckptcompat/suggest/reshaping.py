"""Explain changed shapes from the shapes, the names and the neighbours of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changes import Explained, differing
from .layerwise import layerwise
from .patterns import Globs
from .positions import positions
from .recurrent import gates
from .steps import Step
from .vocabulary import vocabulary
from .widening import widened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .changes import Change, Changes


def reshapes(changes: Changes) -> list[Step]:
    """Find operators that give the keys of a checkpoint the shapes of the model.

    Every kind of change has its function. If that can't explain a key, no other kind may try it. Changes that
    may depend on an unexplained one are not explained either.
    """
    changed = changes.changed
    if not changed:
        return []
    found = Explained()
    left = dict.fromkeys(changed)
    for explain in (gates, positions, vocabulary, widened, layerwise):
        more = explain(changes, left.keys())
        found.steps |= more.steps
        found.joint += more.joint
        found.barred |= more.barred
        for key in more.keys:
            left.pop(key, None)
    found.barred |= left.keys()
    _bar_what_hangs_together(found, changes)
    return [*_merged(found.steps, changes), *(step for _, step in found.joint)]


def _bar_what_hangs_together(found: Explained, changes: Changes) -> None:
    """Bar keys that may depend on something unexplained.

    These are keys of the same module, sizes with the same change, and rows that a later layer may use.
    """
    while True:
        sizes = {pair for key in found.barred for pair in _pairs(changes.changed[key])}
        modules = {key.rpartition(".")[0] for key in found.barred}
        takes_in = max(
            (changes.order[key] for key in found.barred if 1 in differing(*changes.changed[key])), default=-1
        )
        more = {
            key
            for key in found.steps.keys() & changes.changed.keys()
            if key.rpartition(".")[0] in modules
            or sizes.intersection(_pairs(changes.changed[key]))
            or (changes.order[key] < takes_in and _grows_rows(found.steps[key]))
        }
        together = [
            keys
            for keys, _ in found.joint
            if keys & found.barred
            or any(sizes.intersection(_pairs(changes.changed[key])) for key in keys & changes.changed.keys())
        ]
        if not more and not together:
            return
        found.barred |= more.union(*together)
        found.steps = {key: steps for key, steps in found.steps.items() if key not in found.barred}
        found.joint = [(keys, step) for keys, step in found.joint if keys not in together]


def _pairs(change: Change) -> list[tuple[int, int]]:
    old, new = change
    return [(old[dim], new[dim]) for dim in differing(old, new)]


def _grows_rows(steps: tuple[Step, ...]) -> bool:
    """Return whether the rows are units that another layer may use, and not words."""
    return steps[0].operator in ("tile", "select") and steps[0].options["dim"] == 0


def _merged(steps: Mapping[str, tuple[Step, ...]], changes: Changes) -> list[Step]:
    """Merge keys with equal steps into as few operators as possible.

    For tied keys of the checkpoint, an operator on the first also changes the others.
    """
    alike: dict[str, list[str]] = {}
    firsts: set[object] = set()
    for key, several in steps.items():
        tensor = (changes.old_ties.get(key, key), repr(several))
        if tensor not in firsts:
            firsts.add(tensor)
            alike.setdefault(repr(several), []).append(key)
    globs = Globs(changes.checkpoint, changes.budget)
    return [
        Step(step.operator, (pattern, *step.arguments), step.options)
        for chosen in alike.values()
        for pattern in globs.cover(chosen)
        for step in steps[chosen[0]]
    ]
