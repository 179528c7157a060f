"""The operator `tile`: more rows, each a copy of an old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.recipes.per_row import RowChange, RowWise
from pytest_ckptcompat.recipes.per_tensor import outputs_of
from pytest_ckptcompat.recipes.rows import Rows, add_noise, wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class tile(RowWise):
    """Repeat rows until the dimension has the model's size: new row i is old row ``i mod n``.

    ``Linear(256, 4)`` grown to 14 outputs is ``cat([w, w, w, w[0:2]])``, and so is its bias. The old rows
    keep their places, so an output layer still gives the old outputs. The weight of a transposed convolution
    has its outputs in ``dim=1``, and its bias in ``dim=0``.

    ``tile("out2.*", dim=0)``

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that grows.
        to: its new size; the model's if it is left out.
        noise_std: the standard deviation of normal noise on the new rows, so that they are not exact copies.
        seed: the seed of the noise.
        blocks: the dimension is so many equal blocks (anchors, gates, heads), each of which grows alike; `to`
            is the size of all together.
        optim: optimizer state of the new rows: ``copy`` repeats the old rows' as the weights are, ``zeros``
            fills in zeros, ``reset`` starts the tensor's state anew.
    """

    rounds: ClassVar[bool] = False

    to: int | None = None
    noise_std: float = 0.0
    seed: int = 0
    blocks: int = 1
    optim: Literal["copy", "zeros", "reset"] = "copy"

    def caveat(self, state: State, target: State) -> str:
        """Return why the function may change: repeated inputs count twice; repeated outputs do no harm."""
        for key, _ in self.changes(state, target):
            outputs = outputs_of(key, state, target)
            if self.dim % state[key].dim() != (outputs or 0):
                return f"{self} repeats inputs{'' if outputs is not None else ', as far as shapes tell'}"
        return ""

    def change(self, key: str, state: State, target: State) -> RowChange | None:
        size = self.new_size(key, self.dim, self.to, state, target)
        if size is None:
            return None
        old = state[key].shape[self.dim]
        if size < old or old == 0:
            raise self.unfit(
                key, f"dimension {self.dim} has {old} and is to have {size}: tile makes more of what there is"
            )
        if self.noise_std and not state[key].is_floating_point():
            raise self.unfit(key, "it holds no real floats, to which noise could be added")
        return RowChange(Rows.repeated(self.of_a_block(key, old), self.of_a_block(key, size), self.blocks))

    def make(self, key: str, change: RowChange, tensor: torch.Tensor) -> torch.Tensor:
        new = super().make(key, change, tensor)
        if self.noise_std:
            add_noise(new, self.dim, change.rows.copies, self.noise_std, self.seed, key)
        return new

    def moments(self, key: str, change: RowChange, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        if self.optim == "zeros":
            firsts = set(change.rows.firsts)
            came = (old if row in firsts else None for row, old in enumerate(change.rows.origin))
            change = RowChange(Rows(tuple(came)))
        return super().moments(key, change, tensor, squares)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that old rows are bit-equal, and row i is row ``i mod n``, except for noise."""
        block = " of its block" if self.blocks > 1 else ""
        told = f"within 7 × {self.noise_std}" if self.noise_std else "bit for bit"
        return [
            self.old_rows_kept(before, after, target),
            self.claim(f"row i is row i mod n{block}", before, after, target, kept=told),
        ]

    def faults(self, key: str, change: RowChange, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        allowed = None
        if self.noise_std:
            values = old.to(wide(old))
            largest = float(values.abs().max()) if values.numel() else 0.0
            allowed = 7 * self.noise_std + torch.finfo(old.dtype).eps * (largest + 7 * self.noise_std)
        yield from change.rows.faults(key, old, new, self.dim, tolerance=allowed)
