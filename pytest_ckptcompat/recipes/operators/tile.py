"""The operator `tile`: more rows, each a copy of an old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.recipes.per_row import RowWise
from pytest_ckptcompat.recipes.per_tensor import Change, has_floats, outputs_of, size_after
from pytest_ckptcompat.recipes.rows import Rows, add_to_rows, drawn, picked, put_rows, resized, wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class tile(RowWise):
    """Repeat rows until the dimension has the model's size: new row i is old row ``i mod n``.

    ``Linear(256, 4)`` grown to 14 outputs is ``cat([w, w, w, w[0:2]])``, and so is its bias. The old rows
    keep their places, so a grown output layer gives the old outputs as it did. A transposed convolution has
    its outputs in ``dim=1``, and those of its bias in ``dim=0``.

    ``tile("out2.*", dim=0)``

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that grows.
        to: its new size; the model's if it is left out.
        noise_std: standard deviation of normal noise on the new rows, by which they stop being exact copies.
        seed: of the noise.
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
        for key in self.tensors(state):
            if self.rows(key, state, target) is not None:
                outputs = outputs_of(key, state, target)
                if self.dim % state[key].dim() != (outputs or 0):
                    return f"{self} repeats inputs{'' if outputs is not None else ', as far as shapes tell'}"
        return ""

    def rows(self, key: str, state: State, target: State) -> Rows | None:
        size = size_after(self, key, self.dim, self.to, state, target)
        if size is None:
            return None
        old = state[key].shape[self.dim]
        if size < old or old == 0:
            raise self.unfit(
                key, f"dimension {self.dim} has {old} and is to have {size}: tile makes more of what there is"
            )
        if self.noise_std and not has_floats(state[key]):
            raise self.unfit(key, "it holds no real floats, to which noise could be added")
        each, more = (self.divided(key, rows, self.blocks) for rows in (old, size))
        return Rows.repeated(each, more, self.blocks)

    def change(self, key: str, state: State, target: State) -> Change | None:
        rows = self.rows(key, state, target)
        if rows is None:
            return None

        def make(tensor: torch.Tensor) -> torch.Tensor:
            new = rows.taken(tensor, self.dim)
            if self.noise_std and not new.is_meta:
                sizes = resized(new, self.dim, len(rows.copies))
                add_to_rows(new, self.dim, rows.copies, drawn(new, sizes, self._noise, self.seed, key))
            return new

        def optimizer_transform(_: bool, tensor: torch.Tensor) -> torch.Tensor:
            new = rows.taken(tensor, self.dim)
            if self.optim == "zeros" and not new.is_meta:
                put_rows(new, self.dim, rows.copies, torch.zeros_like(picked(new, self.dim, rows.copies)))
            return new

        return Change(make, None if self.optim == "reset" else optimizer_transform)

    def _noise(self, tensor: torch.Tensor, generator: torch.Generator) -> None:
        tensor.normal_(0.0, self.noise_std, generator=generator)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that old rows are bit-equal, and row i is row ``i mod n``, except for noise."""

        def check(key: str, rows: Rows, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
            yield from rows.faults(key, old, new, self.dim, tolerance=self._allowed(old))

        told = f"within 7 × {self.noise_std}" if self.noise_std else "bit for bit"
        block = " of its block" if self.blocks > 1 else ""
        repeated = Claim.of(
            f"{self}: row i is row i mod n{block}", lambda: self.faults(before, after, target, check), told
        )
        return [self.old_rows_kept(before, after, target), repeated]

    def _allowed(self, old: torch.Tensor) -> float | None:
        """Return the tolerance for the noise and the rounding of the sum; None without noise."""
        if not self.noise_std:
            return None
        size = (
            float(old.to(torch.promote_types(wide(old), torch.float32)).abs().max()) if old.numel() else 0.0
        )
        return 7 * self.noise_std + torch.finfo(old.dtype).eps * (size + 7 * self.noise_std)
