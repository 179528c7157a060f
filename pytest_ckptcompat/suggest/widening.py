"""Widen hidden layers: one module gives more units, and others use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.recipes.operators import tile, widen

from .changes import ANY, Explained, differing, module_of, projects, unitwise

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from .changes import Changes

Pair = tuple[int, int]
"""The old and the new number of units."""
_Paths = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass
class _Units:
    """The units of a hidden layer, by the keys that count them.

    Attributes:
        pair: the old and the new number.
        producers: weights with a row for each unit.
        along: tensors that work unit by unit: biases, norms, depthwise convolutions.
        consumers: weights with one or several columns for each unit.
    """

    pair: Pair
    producers: list[str]
    along: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset([*self.producers, *self.along, *self.consumers])

    @property
    def paths(self) -> _Paths:
        """The modules of the producers, the consumers, and the tensors between."""
        producers, consumers, along = (
            tuple(dict.fromkeys(map(module_of, keys)))
            for keys in (self.producers, self.consumers, self.along)
        )
        return producers, consumers, tuple(path for path in along if path not in producers)


def widened(changes: Changes, left: Collection[str]) -> Explained:
    """Widen hidden layers with more units; equal layers of all blocks in one step.

    A weight belongs to the last layer before it that gives as many units as it takes. Nothing in a layer is
    explained if a norm between the two would treat copies differently from originals, or if the units belong
    to heads or became fewer.
    """
    every = list(_layers(changes, left))
    layers = [units for units in every if units.consumers]
    found = Explained()
    alike: dict[tuple[Pair, _Paths], list[_Units]] = {}
    for units in layers:
        if _as_copies(changes, units):
            alike.setdefault((units.pair, _blocks(units.paths)), []).append(units)
        else:
            found.bar(units.keys)
    taken_in = {key for units in layers for key in units.consumers}
    for units in every:
        if not units.consumers:
            more = units.pair[0] < units.pair[1]
            for key in taken_in.intersection(units.producers):  # a head with more outputs on a wider layer
                found.put(key, (tile(ANY, dim=0),) if more else ())
    modules = {key.rpartition(".")[0] for key in changes.checkpoint}
    for (_, paths), several in alike.items():
        if len(several) > 1 and len(select(paths[0][0], modules)) == len(several):
            found.joint.append((frozenset().union(*(units.keys for units in several)), _widen(*paths)))
        else:
            found.joint += [(units.keys, _widen(*units.paths)) for units in several]
    return found


def _layers(changes: Changes, left: Collection[str]) -> Iterator[_Units]:
    """Yield every layer with a changed number of units, with or without consumers."""
    last: dict[Pair, _Units] = {}
    for key, (old, new) in changes.budget.each(changes.changed.items()):
        if key not in left or not (old and new and old[0] and new[0]):
            continue
        dims = differing(old, new)
        layer = changes.layers.get(key)
        rows = (old[0], new[0])
        if layer is None:
            if dims == [0] and len(old) == 1 and rows in last and module_of(key):
                last[rows].along.append(key)
            continue
        if not module_of(key) or layer.outputs == 1:
            continue
        if dims == [0] and layer.groups == new[0] > 1 and rows in last and not last[rows].consumers:
            last[rows].along.append(key)  # a depthwise convolution
            continue
        if 1 in dims and layer.takes_all and set(dims) <= {0, 1}:
            units = last.get((old[1], new[1])) or _flattened(changes, key, last)
            if units is not None:
                units.consumers.append(key)
            elif 0 in dims:
                continue
        if dims[:1] == [0] and set(dims) <= {0, 1} and layer.takes_all:
            if rows in last and not last[rows].consumers:
                last[rows].producers.append(key)
            else:
                last[rows] = _Units(rows, [key])
                yield last[rows]


def _flattened(changes: Changes, key: str, last: dict[Pair, _Units]) -> _Units | None:
    """Return the convolution whose images are flattened for a linear layer: several columns per unit.

    If two layers give the units, the columns are not in this order.
    """
    old, new = changes.changed[key]
    found = [
        units
        for (before, after), units in last.items()
        if len(changes.changed[units.producers[0]][0]) > 2 == len(old)
        and len(units.producers) == 1
        and old[1] % before == 0
        and new[1] == old[1] // before * after
    ]
    return found[0] if len(found) == 1 else None


def _as_copies(changes: Changes, units: _Units) -> bool:
    """Return whether copies of units can do the work of their originals together."""
    old, new = units.pair
    _, _, between = units.paths
    return (
        new > old
        and not any(projects(key, changes.model) for key in units.producers)
        and all(
            unitwise(path, units.pair, changes.checkpoint, changes.modules) or _depthwise(changes, path)
            for path in between
        )
    )


def _depthwise(changes: Changes, path: str) -> bool:
    layer = changes.layers.get(f"{path}.weight")
    return layer is not None and layer.groups > 1


# -- the same in every block --------------------------------------------------------------------------------


def _blocks(paths: _Paths) -> _Paths:
    """Return the paths with stars for the block numbers that they share."""
    parts = zip(*(path.split(".") for several in paths for path in several), strict=False)
    common = sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, parts))

    def starred(path: str) -> str:
        parts = path.split(".")
        return ".".join("*" if at < common and part.isdecimal() else part for at, part in enumerate(parts))

    producers, consumers, along = (tuple(map(starred, several)) for several in paths)
    return producers, consumers, along


def _widen(producers: tuple[str, ...], consumers: tuple[str, ...], norms: tuple[str, ...]) -> widen:
    return widen(producers[0] if len(producers) == 1 else producers, consumers, norms)
