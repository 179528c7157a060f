"""The operator `append`: new rows after the old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_ckptcompat.recipes.new_rows import Fresh, Init
from pytest_ckptcompat.recipes.per_row import RowChange, RowWise
from pytest_ckptcompat.recipes.rows import Rows

if TYPE_CHECKING:
    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class append(RowWise):
    """Append new rows to a dimension, behind the old ones.

    ``mean`` and ``multivariate_normal`` are for new words: with small random rows, they would take most of
    the probability (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021;
    transformers' ``resize_token_embeddings``).

    ``append("embed.weight", dim=0, init="mean")``

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that grows.
        n: how many rows are added; if it is left out, as many as the model has more.
        init: how they are made: ``zeros``; ``constant``: `value`; ``normal``: mean 0, `std`;
            ``kaiming_uniform`` and ``xavier_uniform``: as torch fills a new tensor of the model's size, a
            bias with the bound that its weight gives it; ``mean``: the mean of the old rows;
            ``multivariate_normal``: drawn around it, with 1e-9 of the old rows' covariance.
        std: for ``normal``; the standard deviation of the old rows if it is left out.
        value: for ``constant``.
        seed: the seed of random rows.
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
    optim: Literal["mean", "zeros", "reset"] = "mean"

    def caveat(self, state: State, target: State) -> str:
        # New outputs keep the old ones, and inputs of zero add nothing.
        nothing = self.init == "zeros" or (self.init == "constant" and self.value == 0)
        return "" if self.dim == 0 or nothing else f"{self} adds inputs that count"

    def change(self, key: str, state: State, target: State) -> RowChange | None:
        if not self.has_dimension(key, self.dim, state, target):
            return None
        old = state[key].shape[self.dim]
        size = self.new_size(key, self.dim, None if self.n is None else old + self.n, state, target)
        if size is None:
            return None
        if size < old:
            raise self.unfit(key, f"dimension {self.dim} has {old} and is to have {size}: append makes more")
        rows = Rows.extended(self.of_a_block(key, old), self.of_a_block(key, size), self.blocks)
        return RowChange(rows, Fresh.of(self.init, self, key, state, target))

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that old rows are bit-equal, and new ones are as declared by `init`."""
        declared = self.claim(
            "new rows are as declared", before, after, target, faults=self.new_rows_declared, kept=self.init
        )
        return [self.old_rows_kept(before, after, target), declared]
