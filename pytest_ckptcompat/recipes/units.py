"""Prove the promises of `widen` on the tensors: units are copied, and share their work.

Nothing here may use the code with which `widen` makes a tensor.
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
    """A layer of hidden units.

    Attributes:
        rows: keys with a row for each unit: its weights, its bias, its entry in the norms.
        weights: those of `rows` that are weights of a producer.
        columns: keys with columns for each unit -> how many neighbouring columns a unit has: one, or as many
            as a flatten puts side by side.
        old: the old number of units.
        origin: for each new unit, the old unit that it is a copy of.
        shares: for each new unit, its share of the original's work; they sum to 1 for each old unit.
    """

    rows: Sequence[str]
    weights: Collection[str]
    columns: Mapping[str, int]
    old: int
    origin: tuple[int, ...]
    shares: tuple[float, ...]

    @cached_property
    def more_rows(self) -> Rows:
        """The row map: each new unit's row is a copy of its original's."""
        return Rows(self.origin)

    def more_columns(self, tensor: torch.Tensor) -> Rows:
        """Return the column map: each new unit's columns are copies of its original's."""
        block = tensor.shape[1] // self.old
        return Rows(tuple(unit * block + column for unit in self.origin for column in range(block)))

    def shared(self, rows: Rows, power: int = 1) -> Rows:
        """Return the map with each unit's rows multiplied by its share."""
        block = len(rows.origin) // len(self.origin)
        return replace(rows, factors=tuple(share**power for share in self.shares for _ in range(block)))


def shares(origin: Sequence[int], split: Split, generator: torch.Generator) -> tuple[float, ...]:
    """Return the share of each new unit in the work of its original.

    Unequal parts are random, and differ by a factor of three at most. With ``zero``, the first copy does all
    the work.
    """
    if split == "zero":
        firsts = set(Rows(tuple(origin)).firsts)
        return tuple(float(unit in firsts) for unit in range(len(origin)))
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
    """Yield rows that are not copies of their units' rows, except for noise on new weights."""
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
    """Yield columns where those of a unit's copies don't sum to its old ones."""
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
        if split == "zero" and bool(parts[:, Rows(tuple(originals.tolist())).copies].any()):
            yield f"{escape(key)}: columns of new units are not zero"


def conditions(layers: Iterable[Units], before: State) -> str:
    """Return the further conditions for keeping the function, which tensors can't show."""
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
    """Return a new unit and its original whose rows and columns all have the same bits, or None."""
    rows = [materialise(after[key]) for key in units.rows]
    columns = [_apart(materialise(after[key]), block) for key, block in units.columns.items()]
    firsts = {units.origin[first]: first for first in units.more_rows.firsts}
    for copy in units.more_rows.copies:
        first = firsts[units.origin[copy]]
        if all(same_bits(each[first], each[copy]) for each in rows) and all(
            same_bits(each[:, first], each[:, copy]) for each in columns
        ):
            return first, copy
    return None


def _may_be_layer_norm(key: str, state: State) -> bool:
    """Return whether a key may be the weight of a norm without statistics; a PReLU's looks the same."""
    module, _, leaf = key.rpartition(".")
    return leaf == "weight" and state[key].dim() == 1 and f"{module}.running_mean" not in state


def _apart(tensor: torch.Tensor, block: int) -> torch.Tensor:
    """Give the columns of each unit their own dimension: (out, units, block, ...)."""
    return tensor.reshape(len(tensor), -1, block, *tensor.shape[2:])
