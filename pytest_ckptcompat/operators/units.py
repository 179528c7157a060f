"""The hidden units that `widen` makes more of: where they come in and go out, which is a copy of which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from .growing import bits, resized

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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

    def more_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Each new unit's row: a copy of its original's."""
        return _taken(tensor, 0, self._index())

    def more_columns(self, tensor: torch.Tensor) -> torch.Tensor:
        """Each new unit's columns: copies of its original's."""
        block = tensor.shape[1] // self.old
        return _taken(tensor, 1, (self._index()[:, None] * block + torch.arange(block)).flatten())

    def shared(self, tensor: torch.Tensor, dim: int, power: int = 1) -> torch.Tensor:
        """A new tensor with each unit's part multiplied by its share."""
        if tensor.is_meta:
            return tensor
        exact = torch.promote_types(tensor.dtype, torch.float32)
        shares = torch.tensor(self.shares, dtype=exact, device=tensor.device) ** power
        shares = shares.repeat_interleave(tensor.shape[dim] // len(self.origin))
        across = shares.reshape([-1 if each == dim else 1 for each in range(tensor.dim())])
        return (tensor.to(exact) * across).to(tensor.dtype)

    @cached_property
    def firsts(self) -> dict[int, int]:
        """Old unit -> its first copy among the new ones."""
        return first_copies(self.origin)

    @cached_property
    def copies(self) -> list[int]:
        """The new units that are not the first of their original."""
        return [unit for unit, original in enumerate(self.origin) if self.firsts[original] != unit]

    def _index(self) -> torch.Tensor:
        return torch.tensor(self.origin, dtype=torch.int64)


def _taken(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Rows along `dim`, in memory of their own; on meta, where torch takes its time, the shape alone."""
    if tensor.is_meta:
        return tensor.new_empty(resized(tensor, dim, len(index)))
    return bits(tensor).index_select(dim, index.to(tensor.device)).view(tensor.dtype)


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
