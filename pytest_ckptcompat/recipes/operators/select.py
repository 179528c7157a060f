"""Rows by number or by name."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.new_rows import Fresh, Init, mean
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, shape
from pytest_ckptcompat.recipes.rows import bits, joined, resized
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class select(KeyWise):
    """Take rows: slice, prune, put them into another order, or map classes by their names.

    ``select("head.*", dim=0, index=[0, 2])``, or ``old_names=["cat", "dog"], new_names=["dog", "emu"],
    missing="zeros"`` instead of ``index``.

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that counts the rows.
        index: old row of each new row.
        old_names: the names of the old rows; instead of `index`.
        new_names: the names of the new rows.
        missing: where rows come from that had no old name: an ``init`` of `append`.
        seed: of what is drawn for them.
        optim: optimizer state: ``copy`` takes the rows along, and new ones get zeros for first moments and
            the old rows' mean for second ones; ``reset`` starts the tensor's state anew.
    """

    rounds: ClassVar[bool] = False

    dim: int
    index: tuple[int, ...] | None = None
    old_names: tuple[str, ...] | None = None
    new_names: tuple[str, ...] | None = None
    missing: Init | None = None
    seed: int = 0
    optim: Literal["copy", "reset"] = "copy"

    std = None  # of rows that are drawn; `append` has them as arguments
    value = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.old_names is not None and self.new_names is not None
        if (self.index is None) != named or (self.old_names is None) != (self.new_names is None):
            raise RecipeError("select wants either index or both old_names and new_names", key=self.key)
        for names in (self.old_names or (), self.new_names or ()):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise RecipeError(f"select: the name {python(twice[0])} stands twice", key=self.key)
        unknown = [name for name in self.new_names or () if name not in (self.old_names or ())]
        if unknown and self.missing is None:
            raise RecipeError(
                f"select: {python(unknown[0])} is not among the old names: say with missing= where its row "
                "comes from",
                key=self.key,
            )

    @property
    def rows(self) -> tuple[int | None, ...]:
        """The old row of each new row; None where there is none."""
        if self.index is not None:
            return self.index
        places = {name: row for row, name in enumerate(self.old_names or ())}
        return tuple(places.get(name) for name in self.new_names or ())

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Outputs may go or move; inputs may move alone."""
        permuted = sorted(row if row is not None else -1 for row in self.rows) == list(range(len(self.rows)))
        return "" if self.dim == 0 or permuted else f"{self} leaves out inputs"

    def change(self, key: str, state: State, target: State) -> Change | None:
        has, rows = tuple(state[key].shape), self.rows
        why = self._misfit(has)
        if why:
            if key == self.key or shape(target.get(key)) not in (None, has):
                raise self.unfit(key, f"it is {shown(has)}, {why}")
            return None
        old = has[self.dim]
        if rows == tuple(range(old)):
            return None
        lacking = rows.count(None)
        fresh = Fresh.of(self.missing or "zeros", self, self, key, state, target)
        new = iter(range(old, old + lacking))
        places = [next(new) if row is None else row % old for row in rows]

        def chosen(tensor: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
            pool = tensor if added is None else joined([tensor, added], self.dim)
            index = torch.tensor(places, dtype=torch.int64, device=pool.device)
            return bits(pool).index_select(self.dim, index).view(tensor.dtype)

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return chosen(tensor, fresh.made(tensor, self.dim, lacking) if lacking else None)

        def optimizer_transform(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
            if not lacking:
                return chosen(tensor, None)
            fill = mean(tensor, self.dim) if squares else 0
            added = tensor.new_zeros(resized(tensor, self.dim, lacking)) + fill
            return chosen(tensor, added.to(tensor.dtype))

        return Change(make, None if self.optim == "reset" else optimizer_transform)

    def _misfit(self, has: tuple[int, ...]) -> str:
        """Why a tensor of this shape has no such rows, or ``""``."""
        if not -len(has) <= self.dim < len(has):
            return f"with no dimension {self.dim}"
        size = has[self.dim]
        if self.old_names is not None:
            return "" if size == len(self.old_names) else f"and there are {len(self.old_names)} old names"
        beyond = [row for row in self.index or () if not -size <= row < size]
        return f"with no row {beyond[0]} in dimension {self.dim}" if beyond else ""

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Every new row is, bit for bit, the old row of its number or name; others are as `missing` says."""
        count = 0

        def faults() -> Iterator[str]:
            nonlocal count
            for key in self.tensors(before):
                if self._misfit(tuple(before[key].shape)):
                    continue
                old, new = materialise(before[key]), materialise(after[key])
                if new.shape[self.dim] != len(self.rows):
                    yield f"{escape(key)}: {new.shape[self.dim]} rows instead of {len(self.rows)}"
                    return
                count += 1
                fresh = []
                for place, row in enumerate(new.unbind(self.dim)):
                    came = self._came(place)
                    if came is None:
                        fresh.append(row)
                    elif not same_bits(old.select(self.dim, came), row):
                        yield f"{escape(key)}: row {place} is not old row {came}"
                        return
                if fresh and self.missing:
                    declared = Fresh.of(self.missing, self, self, key, before, target)
                    yield from declared.faults(old, torch.stack(fresh, self.dim), self.dim)

        return [Claim.of(f"{self}: rows by their place", faults, "bit for bit")]

    def _came(self, place: int) -> int | None:
        """The old row of one new row."""
        if self.index is not None:
            return self.index[place]
        name = (self.new_names or ())[place]
        return (self.old_names or ()).index(name) if name in (self.old_names or ()) else None
