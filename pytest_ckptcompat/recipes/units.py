"""What `widen` promises, told from the tensors: units are copied, and their work is shared.

Nothing here may use how `widen` makes a tensor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import same_bits

from .promises import differing
from .rows import Rows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from .plan import State

Split = Literal["equal", "unequal", "zero"]


@dataclass(frozen=True)
class Units:
    """One layer of hidden units.

    Attributes:
        rows: keys of which each row is a unit's: its weights, its bias, its place in the norms.
        weights: those of them that are weights of a producer.
        columns: keys of which each column takes in a unit, and how many neighbouring columns each unit has:
            one, or as many as a flatten puts side by side.
        old: how many units there were.
        origin: for each new unit the old one that it is a copy of.
        shares: for each new unit which part of the original's work it does; they sum to 1 for each old unit.
    """

    rows: Sequence[str]
    weights: Collection[str]
    columns: Mapping[str, int]
    old: int
    origin: tuple[int, ...]
    shares: tuple[float, ...]

    @cached_property
    def more_rows(self) -> Rows:
        """Each new unit's row: a copy of its original's."""
        return Rows(self.origin)

    def more_columns(self, tensor: torch.Tensor) -> Rows:
        """Each new unit's columns: copies of its original's."""
        block = tensor.shape[1] // self.old
        return Rows(tuple(unit * block + column for unit in self.origin for column in range(block)))

    def shared(self, rows: Rows, power: int = 1) -> Rows:
        """The same with each unit's part multiplied by its share."""
        block = len(rows.origin) // len(self.origin)
        return replace(rows, factors=tuple(share**power for share in self.shares for _ in range(block)))

    @cached_property
    def firsts(self) -> dict[int, int]:
        """Old unit -> its first copy among the new ones."""
        return first_copies(self.origin)

    @cached_property
    def copies(self) -> list[int]:
        """The new units that are not the first of their original."""
        return [unit for unit, original in enumerate(self.origin) if self.firsts[original] != unit]


def first_copies(origin: Sequence[int]) -> dict[int, int]:
    """Old unit -> the first new unit that is a copy of it."""
    return dict(reversed([(original, unit) for unit, original in enumerate(origin)]))


def shares(origin: Sequence[int], split: Split, generator: torch.Generator) -> tuple[float, ...]:
    """How old units divide their work among their copies.

    Args:
        origin: the old unit of each new one.
        split: ``equal``: in equal parts; ``unequal``: in parts drawn between one and three of the others'
            size; ``zero``: the first does it all.
        generator: of what is drawn.
    """
    if split == "zero":
        firsts = first_copies(origin)
        return tuple(float(firsts[original] == unit) for unit, original in enumerate(origin))
    weights = torch.ones(len(origin), dtype=torch.float64)
    if split == "unequal":
        weights += 2 * torch.rand(len(origin), generator=generator, dtype=torch.float64)
    sums = torch.zeros(max(origin) + 1, dtype=torch.float64)
    index = torch.tensor(origin, dtype=torch.int64)
    sums.index_add_(0, index, weights)
    return tuple((weights / sums[index]).tolist())


def uncopied(
    units: Units, before: State, after: State, mapping: Sequence[int] | None, noise_std: float
) -> Iterator[str]:
    """The rows that are not those of the units that they are copies of, but for the noise of new weights."""
    for key in units.rows:
        old, new = materialise(before[key]), materialise(after[key])
        rows = Rows(tuple(mapping or [unit % len(old) for unit in range(len(new))]))
        if len(new) != len(rows.origin) or len(new) != len(units.origin):
            yield f"{escape(key)}: {len(new)} rows for {len(units.origin)} units"
            continue
        noisy = noise_std and key in units.weights
        yield from rows.faults(key, old, new, 0, places=rows.firsts if noisy else None)
        if noisy:
            yield from rows.faults(key, old, new, 0, tolerance=8 * noise_std)


def unshared(
    units: Units, before: State, after: State, mapping: Sequence[int] | None, split: Split
) -> Iterator[str]:
    """The columns of which those of a unit's copies do not sum up to its own."""
    for key, block in units.columns.items():
        old, new = materialise(before[key]), materialise(after[key])
        if new.shape[1] != block * len(units.origin):
            yield f"{escape(key)}: {new.shape[1]} columns for {len(units.origin)} units"
            continue
        count = old.shape[1] // block
        originals = torch.tensor(mapping or [unit % count for unit in range(len(units.origin))])
        parts = _apart(new, block).double()
        summed = torch.zeros_like(_apart(old, block), dtype=torch.float64)
        summed = summed.index_add(1, originals, parts).flatten(1, 2)
        precision = max(4 * torch.finfo(new.dtype).eps, 1e-12) * float(old.double().abs().max())
        yield from differing(key, old.double(), summed, precision)
        firsts = dict(reversed([(unit, place) for place, unit in enumerate(originals.tolist())]))
        added = torch.ones(len(originals), dtype=torch.bool)
        added[list(firsts.values())] = False
        if split == "zero" and bool(parts[:, added].any()):
            yield f"{escape(key)}: columns of new units are not zero"


def conditions(layers: Iterable[Units], before: State) -> str:
    """What the function is kept under besides, which tensors do not tell."""
    told: dict[str, None] = {}
    for units in layers:
        if any(block > 1 for block in units.columns.values()):
            told["if a flatten puts each unit's columns side by side"] = None
        if len(set(Counter(units.origin).values())) > 1 and any(
            _may_be_layer_norm(key, before) for key in units.rows
        ):
            told["but under no LayerNorm: copies are unequally many"] = None
    return "; ".join(told)


def twins(units: Units, after: State) -> tuple[int, int] | None:
    """A new unit and its original, if all their rows and columns have the same bits."""
    rows = [materialise(after[key]) for key in units.rows]
    columns = [_apart(materialise(after[key]), block) for key, block in units.columns.items()]
    for copy in units.copies:
        first = units.firsts[units.origin[copy]]
        if all(same_bits(each[first], each[copy]) for each in rows) and all(
            same_bits(each[:, first], each[:, copy]) for each in columns
        ):
            return first, copy
    return None


def _may_be_layer_norm(key: str, state: State) -> bool:
    """Whether a key is the weight of a norm without running statistics; slopes of a PReLU look the same."""
    module, _, leaf = key.rpartition(".")
    return leaf == "weight" and state[key].dim() == 1 and f"{module}.running_mean" not in state


def _apart(tensor: torch.Tensor, block: int) -> torch.Tensor:
    """The columns of each unit under an index of its own: (out, units, block, ...)."""
    return tensor.reshape(len(tensor), -1, block, *tensor.shape[2:])
