"""The base class of operators that change the rows of one dimension, and their promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.deferred import materialise

from .per_tensor import KeyWise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .plan import State
    from .rows import Rows

    Check = Callable[[str, Rows, torch.Tensor, torch.Tensor], Iterator[str]]


@dataclass(frozen=True, repr=False)
class RowWise(KeyWise):
    """An operator that rebuilds one dimension of each tensor, row by row.

    Attributes:
        key: as in `KeyWise`.
        dim: the dimension that counts the rows.
    """

    dim: int

    def rows(self, key: str, state: State, target: State) -> Rows | None:
        """Return which old row each new row is, or None if the tensor does not change.

        Raises:
            RecipeError: the tensor should change, but can't.
        """
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = getattr(self, "blocks", 1)
        if blocks < 1:
            raise RecipeError(f"{type(self).__name__}: blocks={blocks}: there is 1 at least", key=self.key)

    def divided(self, key: str, size: int, blocks: int) -> int:
        """Return the size of each of several equal blocks.

        Raises:
            RecipeError: the blocks would not be equal.
        """
        if size % blocks:
            raise self.unfit(key, f"{size} rows in dimension {self.dim} are not {blocks} equal blocks")
        return size // blocks

    def faults(self, before: State, after: State, target: State, check: Check) -> Iterator[str]:
        """Yield the faults of every tensor that should change: wrong sizes, then what `check` finds."""
        for key in self.tensors(before):
            rows = self.rows(key, before, target)
            if rows is None:
                continue
            old, new = materialise(before[key]), after.get(key)
            wanted = list(old.shape)
            wanted[self.dim] = len(rows.origin)
            if not isinstance(new, torch.Tensor) or list(new.shape) != wanted or new.dtype != old.dtype:
                found = "gone" if new is None else shown(tuple(new.shape), str(new.dtype)[6:])
                yield f"{escape(key)}: {found} where {shown(tuple(wanted), str(old.dtype)[6:])} is due"
                return
            yield from check(key, rows, old, materialise(new))

    def old_rows_kept(self, before: State, after: State, target: State) -> Claim:
        """Claim that the old rows are unchanged, at their places, bit for bit."""
        count = 0

        def check(key: str, rows: Rows, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
            nonlocal count
            count += 1
            yield from rows.faults(key, old, new, self.dim, places=rows.firsts)

        return Claim.of(
            f"{self}: old rows kept",
            lambda: self.faults(before, after, target, check),
            lambda: f"bit-equal in {count} tensor{'' if count == 1 else 's'}",
        )
