"""The base class of operators that change the rows of one dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.core.errors import RecipeError

from .new_rows import Fresh, mean
from .per_tensor import KeyWise
from .rows import Rows, picked, resized

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from pytest_ckptcompat.core.claim import Claim

    from .plan import State


class RowChange(NamedTuple):
    """Which old row each new row is, and how rows that are really new are made."""

    rows: Rows
    fresh: Fresh | None = None


@dataclass(frozen=True, repr=False)
class RowWise(KeyWise[RowChange]):
    """An operator that rebuilds one dimension of each tensor, row by row.

    Attributes:
        key: as in `KeyWise`.
        dim: the dimension that counts the rows.
    """

    dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._blocks < 1:
            raise RecipeError(
                f"{type(self).__name__}: blocks={self._blocks}: there is 1 at least", key=self.key
            )

    @property
    def _blocks(self) -> int:
        return getattr(self, "blocks", 1)

    def new_shape(self, change: RowChange, old: torch.Tensor) -> Sequence[int]:
        """Return the old shape with as many rows as the map has."""
        return resized(old, self.dim, len(change.rows.origin))

    def make(self, key: str, change: RowChange, tensor: torch.Tensor) -> torch.Tensor:
        """Take the old rows, and make the new ones."""
        rows, fresh = change
        added = fresh.made(tensor, self.dim, len(rows.fresh)) if fresh else None
        return rows.taken(tensor, self.dim, added)

    def moments(self, key: str, change: RowChange, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        """Take the old rows; new ones are zero, or the mean if these are squares and `optim` is not zeros."""
        if not change.rows.fresh:
            return change.rows.taken(tensor, self.dim)
        filled = squares and getattr(self, "optim", "") != "zeros" and tensor.shape[self.dim]
        added = tensor.new_zeros(resized(tensor, self.dim, len(change.rows.fresh)))
        added = added + mean(tensor, self.dim) if filled else added
        return change.rows.taken(tensor, self.dim, added.to(tensor.dtype))

    def of_a_block(self, key: str, size: int) -> int:
        """Return how many of `size` rows each block has.

        Raises:
            RecipeError: the blocks would not be equal.
        """
        if size % self._blocks:
            raise self.unfit(key, f"{size} rows in dimension {self.dim} are not {self._blocks} equal blocks")
        return size // self._blocks

    def new_rows_declared(
        self, key: str, change: RowChange, old: torch.Tensor, new: torch.Tensor
    ) -> Iterator[str]:
        """Yield what is wrong with the really new rows."""
        if change.fresh is not None:
            yield from change.fresh.faults(old, picked(new, self.dim, change.rows.fresh), self.dim)

    def old_rows_kept(self, before: State, after: State, target: State) -> Claim:
        """Claim that the old rows are unchanged, at their places, bit for bit."""
        count = 0

        def faults(key: str, change: RowChange, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
            nonlocal count
            count += 1
            yield from change.rows.faults(key, old, new, self.dim, places=change.rows.firsts)

        def kept() -> str:
            return f"bit-equal in {count} tensor{'' if count == 1 else 's'}"

        return self.claim("old rows kept", before, after, target, faults=faults, kept=kept)
