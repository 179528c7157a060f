"""The operator `select`: rows by number or by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.new_rows import Fresh, Init
from pytest_ckptcompat.recipes.per_row import RowChange, RowWise
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class select(RowWise):
    """Select rows: slice, prune, reorder, or map classes by name.

    ``select("head.*", dim=0, index=[0, 2])``, or ``old_names=["cat", "dog"], new_names=["dog", "emu"],
    missing="zeros"`` instead of ``index``.

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that counts the rows.
        index: old row of each new row.
        old_names: the names of the old rows; instead of `index`.
        new_names: the names of the new rows.
        missing: how rows without an old name are made: an ``init`` of `append`.
        seed: the seed of random rows.
        blocks: the dimension is so many equal blocks (anchors, gates, heads); numbers and names are those of
            one block, and all change alike.
        optim: optimizer state: ``copy`` takes the rows along, and new ones get zeros for first moments and
            the old rows' mean for second ones; ``reset`` starts the tensor's state anew.
    """

    rounds: ClassVar[bool] = False
    promise: ClassVar[str] = "rows by their place"
    kept: ClassVar[str] = "bit for bit"

    index: tuple[int, ...] | None = None
    old_names: tuple[str, ...] | None = None
    new_names: tuple[str, ...] | None = None
    missing: Init | None = None
    seed: int = 0
    blocks: int = 1
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.old_names is not None and self.new_names is not None
        if (self.index is None) != named or (self.old_names is None) != (self.new_names is None):
            raise RecipeError("select needs either index or both old_names and new_names", key=self.key)
        if self.index is not None and self.missing is not None:
            raise RecipeError(
                "select: missing= goes with old_names and new_names; every row of index is an old one",
                key=self.key,
            )
        for names in (self.old_names or (), self.new_names or ()):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise RecipeError(f"select: the name {python(twice[0])} is there twice", key=self.key)
        unknown = [name for name in self.new_names or () if name not in (self.old_names or ())]
        if unknown and self.missing is None:
            raise RecipeError(
                f"select: {python(unknown[0])} is not among the old names: declare with missing= how its row "
                "is made",
                key=self.key,
            )

    @property
    def _origin(self) -> tuple[int | None, ...]:
        """The old row of each new row of a block; None for new rows."""
        if self.index is not None:
            return self.index
        places = {name: row for row, name in enumerate(self.old_names or ())}
        return tuple(places.get(name) for name in self.new_names or ())

    def caveat(self, state: State, target: State) -> str:
        """Return why the function may change: inputs may only be moved; outputs may also be dropped."""
        for key, (rows, _) in self.changes(state, target):
            if self.dim % state[key].dim() == 0:
                continue
            if not set(range(state[key].shape[self.dim])) <= set(rows.origin):
                return f"{self} leaves out inputs"
            if rows.copies:
                return f"{self} repeats inputs"
        return ""

    def change(self, key: str, state: State, target: State) -> RowChange | None:
        has = tuple(state[key].shape)
        why = self._misfit(has)
        if why:
            if key == self.key or shape(target.get(key)) not in (None, has):
                raise self.unfit(key, f"it is {shown(has)}, {why}")
            return None
        size = self.of_a_block(key, has[self.dim])
        origin = tuple(
            None if row is None else block * size + row % size
            for block in range(self.blocks)
            for row in self._origin
        )
        if origin == tuple(range(has[self.dim])):
            return None
        fresh = None
        if self.missing is not None and None in origin:
            fresh = Fresh.of(self.missing, self, key, state, target)
        return RowChange(Rows(origin), fresh)

    def _misfit(self, has: tuple[int, ...]) -> str:
        """Return why a tensor of this shape has no such rows, or ``""``."""
        if not -len(has) <= self.dim < len(has):
            return f"with no dimension {self.dim}"
        size = has[self.dim] // self.blocks
        block = " of each block" if self.blocks > 1 else ""
        if self.old_names is not None:
            count = len(self.old_names)
            return "" if size == count else f"and there are {count} old names{block}"
        beyond = [row for row in self.index or () if not -size <= row < size]
        return f"with no row {beyond[0]} in dimension {self.dim}{block}" if beyond else ""

    def faults(self, key: str, change: RowChange, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        yield from change.rows.faults(key, old, new, self.dim)
        yield from self.new_rows_declared(key, change, old, new)
