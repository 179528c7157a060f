"""Hidden layers that got more units: one module gives them, others take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .layers import module_of, unitwise
from .steps import Step

if TYPE_CHECKING:
    from .layers import Layer, Modules
    from .templates import Shapes

Sizes = tuple[int, ...]
Changes = Mapping[str, tuple[Sizes, Sizes]]

MOST_WIDENED = 8


def widened(
    changed: Changes, layers: Mapping[str, Layer], checkpoint: Shapes, modules: Modules
) -> tuple[set[str], list[Step]] | None:
    """Steps that widen hidden layers, and the keys that they are about.

    Args:
        changed: keys, each with its shape in the checkpoint and in the model, which differ.
        layers: how to read the weights among them.
        checkpoint: the checkpoint's keys.
        modules: the model's.

    Returns:
        None where a norm between would not treat the copies as it treated their originals.
    """
    rows = {key: sizes for key, sizes in changed.items() if differing(*sizes) == [0]}
    columns = {
        key: sizes
        for key, sizes in changed.items()
        if _in_rows(key, layers) and differing(*sizes) == [1] and layers[key].takes_all
    }
    order = {key: place for place, key in enumerate(changed)}
    producers = [key for key in rows if _in_rows(key, layers)]
    keys: set[str] = set()
    steps: list[Step] = []
    for key in producers:
        old, new = (sizes[0] for sizes in rows[key])
        alike = [other for other in producers if other != key and rows[other][0][0] == old]
        consumers = [
            other
            for other in columns
            if other not in keys
            and order[other] > order[key]
            and _follows(rows[key], columns[other], alone=not alike)
            and not any(order[key] < order[each] < order[other] for each in alike)
        ]
        if new > old and consumers:
            along = [
                other
                for other, sizes in rows.items()
                if (sizes[0][0], sizes[1][0]) == (old, new)
                and order[key] < order[other] < order[consumers[-1]]
                and len(sizes[0]) == 1
            ]
            norms = list(dict.fromkeys(module_of(other) for other in along))
            norms = [name for name in norms if name != module_of(key)]
            if not all(unitwise(name, (old, new), checkpoint, modules) for name in norms):
                return None
            options = {"norms": norms} if norms else {}
            steps.append(Step("widen", (module_of(key), [module_of(other) for other in consumers]), options))
            keys.update([key, *consumers, *along])
    return (keys, steps) if len(steps) <= MOST_WIDENED else (set(), [])


def _in_rows(key: str, layers: Mapping[str, Layer]) -> bool:
    """Whether it is a module's weight, as it is, with a row for each output."""
    return bool(module_of(key)) and key in layers and layers[key].outputs != 1


def differing(old: Sizes, new: Sizes) -> list[int]:
    """The dimensions in which two shapes differ; none where they have not as many."""
    if len(old) != len(new):
        return []
    return [dim for dim, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]


def _follows(producer: tuple[Sizes, Sizes], consumer: tuple[Sizes, Sizes], *, alone: bool) -> bool:
    """Whether the columns of one are the units of the other.

    Each unit may have several columns side by side: where a linear layer comes behind the flattened pictures
    of a convolution. Columns of units that two layers give (`alone` is false) are not in this order.
    """
    (old, *_), (new, *_) = producer
    columns, columns_after = (sizes[1] for sizes in consumer)
    flattened = alone and len(producer[0]) > 2 and len(consumer[0]) == 2
    if columns != old and not flattened:
        return False
    return columns % old == 0 and columns_after == columns // old * new
