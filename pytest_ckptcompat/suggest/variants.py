"""Variants of an operator. Shapes can't tell which is meant, but the old model can."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.keys import select as named
from pytest_ckptcompat.recipes.operators import append, resample, select, tile, widen
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.base import Operator
    from pytest_ckptcompat.recipes.plan import State

MOST_BLOCKS = 16


def variants(operators: Sequence[Operator], checkpoint: State, target: State) -> Iterator[list[Operator]]:
    """Yield the operators, which fit, with another way to do the same in place of one of them.

    Rows may be in equal blocks (anchors, gates, heads), each of which grows or shrinks. The columns after a
    flatten may be ordered by position. More positions may be those of a longer text.
    """
    for place, step in enumerate(Recipe(*operators).steps(checkpoint, target)):
        for others in _others(step.operator, step.before, target):
            yield [*operators[:place], *others, *operators[place + 1 :]]


def _others(operator: Operator, state: State, target: State) -> Iterator[tuple[Operator, ...]]:
    if isinstance(operator, (tile, select)) and operator.dim == 0:
        for old, new in _sizes(operator.key, operator.dim, state, target):
            for blocks in range(2, MOST_BLOCKS + 1):
                if old % blocks == new % blocks == 0:
                    if isinstance(operator, tile):
                        yield (replace(operator, blocks=blocks),)
                    else:
                        yield (replace(operator, blocks=blocks, index=tuple(range(new // blocks))),)
            return
    if isinstance(operator, resample) and operator.old_size is not None:
        dims = {len(shape(state[key]) or ()) - 2 for key in named(operator.key, state.keys())}
        if len(dims) == 1:
            yield (append(operator.key, dim=dims.pop(), init="mean"),)
    if isinstance(operator, widen):
        yield from _place_by_place(operator, state, target)


def _sizes(pattern: str, dim: int, state: State, target: State) -> Iterator[tuple[int, int]]:
    """Yield the old and the new size of a dimension, for changed keys that match a pattern."""
    for key in named(pattern, state.keys()):
        old, new = shape(state[key]), shape(target.get(key))
        if old is not None and new is not None and len(old) == len(new) > dim and old[dim] != new[dim]:
            yield old[dim], new[dim]


def _place_by_place(operator: widen, state: State, target: State) -> Iterator[tuple[Operator, ...]]:
    """Yield copies of units that no consumer uses, for columns that are ordered by position."""
    producers = (operator.producer,) if isinstance(operator.producer, str) else operator.producer
    sizes = [each for path in producers for each in _sizes(f"{path}.weight", 0, state, target)]
    columns = [each for path in operator.consumers for each in _sizes(f"{path}.weight", 1, state, target)]
    if not sizes or not columns or any(old % sizes[0][0] or old == sizes[0][0] for old, _ in columns):
        return
    yield (
        *(tile(f"{path}.*", dim=0) for path in (*producers, *operator.norms)),
        *(
            append(f"{path}.weight", dim=1, blocks=old // sizes[0][0])
            for path, (old, _) in zip(operator.consumers, columns, strict=True)
        ),
    )
