"""The operator `append`: new rows after the old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.recipes.new_rows import Fresh, Init, mean
from pytest_ckptcompat.recipes.per_row import RowWise
from pytest_ckptcompat.recipes.per_tensor import Change, size_after
from pytest_ckptcompat.recipes.rows import Rows, picked, resized

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pytest_ckptcompat.recipes.plan import State

Optim = Literal["mean", "zeros", "reset"]


@dataclass(frozen=True, repr=False)
class append(RowWise):
    """Append new rows to a dimension, behind the old ones.

    ``mean`` and ``multivariate_normal`` are for new words, which with small random rows would take most of
    the probability (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021;
    transformers' ``resize_token_embeddings``).

    ``append("embed.weight", dim=0, init="mean")``

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that grows.
        n: how many rows are added; as many as the model has more, if it is left out.
        init: where they come from: ``zeros``; ``constant``: `value`; ``normal``: mean 0, `std`;
            ``kaiming_uniform`` and ``xavier_uniform``: as torch fills a new tensor of the model's size, a
            bias with the bound that its weight gives it; ``mean``: the mean of the old rows;
            ``multivariate_normal``: drawn around it, with 1e-9 of the old rows' covariance.
        std: for ``normal``; the standard deviation of the old rows if it is left out.
        value: for ``constant``.
        seed: of what is drawn.
        blocks: the dimension is so many equal blocks (anchors, gates, heads), each of which grows alike; `n`
            counts the new rows of all together.
        optim: optimizer state of the new rows: ``mean`` fills in zeros for first moments and the old rows'
            mean for second ones, so that the first updates are not large; ``zeros``; ``reset`` starts the
            tensor's state anew.
    """

    rounds: ClassVar[bool] = False

    n: int | None = None
    init: Init = "zeros"
    std: float | None = None
    value: float = 0.0
    seed: int = 0
    blocks: int = 1
    optim: Optim = "mean"

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function may change: new inputs that are not zero. New outputs keep the old ones."""
        nothing = self.init == "zeros" or (self.init == "constant" and self.value == 0)
        return "" if self.dim == 0 or nothing else f"{self} adds inputs that count"

    def rows(self, key: str, state: State, target: State) -> Rows | None:
        dims = state[key].dim()
        old = state[key].shape[self.dim] if -dims <= self.dim < dims else 0
        declared = None if self.n is None else old + self.n
        size = size_after(self, key, self.dim, declared, state, target)
        if size is None:
            return None
        if size < old:
            raise self.unfit(key, f"dimension {self.dim} has {old} and is to have {size}: append makes more")
        each, more = (self.divided(key, rows, self.blocks) for rows in (old, size))
        return Rows.extended(each, more, self.blocks)

    def change(self, key: str, state: State, target: State) -> Change | None:
        rows = self.rows(key, state, target)
        if rows is None:
            return None
        new = Fresh.of(self.init, self, self, key, state, target)

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return rows.taken(tensor, self.dim, new.made(tensor, self.dim, len(rows.fresh)))

        def optimizer_transform(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
            filled = squares and self.optim == "mean" and tensor.shape[self.dim]
            fill = mean(tensor, self.dim) if filled else 0
            added = tensor.new_zeros(resized(tensor, self.dim, len(rows.fresh))) + fill
            return rows.taken(tensor, self.dim, added.to(tensor.dtype))

        return Change(make, None if self.optim == "reset" else optimizer_transform)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that old rows are bit-equal, and new ones are as declared by `init`."""

        def check(key: str, rows: Rows, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
            declared = Fresh.of(self.init, self, self, key, before, target)
            yield from declared.faults(old, picked(new, self.dim, rows.fresh), self.dim)

        new = f"{self}: new rows are as declared"
        return [
            self.old_rows_kept(before, after, target),
            Claim.of(new, lambda: self.faults(before, after, target, check), self.init),
        ]
