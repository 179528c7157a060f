"""Explain changed shapes from the shapes, the names and the neighbours of keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ckptcompat.recipes.operators import select, tile

from .changes import Explained, differing
from .layerwise import layerwise
from .recurrent import gates
from .tables import positions, vocabulary
from .templates import Globs
from .widening import widened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.recipes.base import Operator

    from .changes import Change, Changes, Operators


def reshapes(changes: Changes) -> list[Operator]:
    """Find operators that give the keys of a checkpoint the shapes of the model.

    Every kind of change has its function. If that can't explain a key, no other kind may try it. Changes that
    may depend on an unexplained one are not explained either.
    """
    if not changes.changed:
        return []
    found = Explained()
    left = dict.fromkeys(changes.changed)
    for explain in (gates, positions, vocabulary, widened, layerwise):
        more = explain(changes, left.keys())
        found.operators |= more.operators
        found.joint += more.joint
        found.barred |= more.barred
        for key in more.keys:
            left.pop(key, None)
    found.bar(left)
    _bar_what_hangs_together(found, changes)
    return [*_merged(found.operators, changes), *(operator for _, operator in found.joint)]


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
            for key in found.operators.keys() & changes.changed.keys()
            if key.rpartition(".")[0] in modules
            or sizes.intersection(_pairs(changes.changed[key]))
            or (changes.order[key] < takes_in and _grows_rows(found.operators[key]))
        }
        together = [
            keys
            for keys, _ in found.joint
            if keys & found.barred
            or any(sizes.intersection(_pairs(changes.changed[key])) for key in keys & changes.changed.keys())
        ]
        if not more and not together:
            return
        found.bar(more.union(*together))
        found.joint = [(keys, operator) for keys, operator in found.joint if keys not in together]


def _pairs(change: Change) -> list[tuple[int, int]]:
    old, new = change
    return [(old[dim], new[dim]) for dim in differing(old, new)]


def _grows_rows(operators: Operators) -> bool:
    """Return whether the rows are units that another layer may use, and not words."""
    return isinstance(operators[0], (tile, select)) and operators[0].dim == 0


def _merged(found: Mapping[str, Operators], changes: Changes) -> list[Operator]:
    """Merge keys with equal operators into as few operators as possible.

    For tied keys of the checkpoint, an operator on the first also changes the others.
    """
    alike: dict[Operators, dict[object, str]] = {}
    for key, operators in found.items():
        alike.setdefault(operators, {}).setdefault(changes.old_ties.get(key, key), key)
    globs = Globs(changes.checkpoint, changes.budget)
    return [
        replace(operator, key=pattern)
        for operators, firsts in alike.items()
        for pattern in globs.cover(firsts.values())
        for operator in operators
    ]
