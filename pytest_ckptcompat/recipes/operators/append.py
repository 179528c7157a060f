"""More rows, made from scratch or from what the old ones have in common."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.recipes.new_rows import Fresh, Init, mean
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, missized, size_after
from pytest_ckptcompat.recipes.promises import grown, old_rows_kept
from pytest_ckptcompat.recipes.rows import joined, resized
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from pytest_ckptcompat.recipes.plan import State

Optim = Literal["mean", "zeros", "reset"]


@dataclass(frozen=True, repr=False)
class append(KeyWise):
    """Grow a dimension by new rows behind the old ones.

    ``mean`` and ``multivariate_normal`` are for new words, which with small random rows would take most of
    the probability (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021;
    transformers' ``resize_token_embeddings``).

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
        optim: optimizer state of the new rows: ``mean`` fills in zeros for first moments and the old rows'
            mean for second ones, so that the first updates are not large; ``zeros``; ``reset`` starts the
            tensor's state anew.
    """

    rounds: ClassVar[bool] = False

    dim: int
    n: int | None = None
    init: Init = "zeros"
    std: float | None = None
    value: float = 0.0
    seed: int = 0
    optim: Optim = "mean"

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """New outputs stand beside the old ones; new inputs are to count nothing."""
        nothing = self.init == "zeros" or (self.init == "constant" and self.value == 0)
        return "" if self.dim == 0 or nothing else f"{self} adds inputs that count"

    def change(self, key: str, state: State, target: State) -> Change | None:
        old = state[key].shape[self.dim] if -state[key].dim() <= self.dim < state[key].dim() else 0
        size = size_after(self, key, self.dim, self._declared(old), state, target)
        if size is None:
            return None
        if size < old:
            raise self.unfit(key, f"dimension {self.dim} has {old} and is to have {size}: append makes more")
        rows = Fresh.of(self.init, self, self, key, state, target)

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return joined([tensor, rows.made(tensor, self.dim, size - old)], self.dim)

        def optimizer_transform(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
            fill = mean(tensor, self.dim) if squares and self.optim == "mean" and old else 0
            added = tensor.new_zeros(resized(tensor, self.dim, size - old)) + fill
            return joined([tensor, added.to(tensor.dtype)], self.dim)

        return Change(make, None if self.optim == "reset" else optimizer_transform)

    def _declared(self, old: int) -> int | None:
        return None if self.n is None else old + self.n

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Old rows are bit-equal, and the new ones are what `init` says."""

        def faults() -> Iterator[str]:
            yield from missized(self, self.dim, self._declared, before, after, target)
            for key, old, new in grown(before, after, self.dim):
                count = old.shape[self.dim]
                added = materialise(new).narrow(self.dim, count, new.shape[self.dim] - count)
                yield from Fresh.of(self.init, self, self, key, before, target).faults(
                    materialise(old), added, self.dim
                )

        return [
            old_rows_kept(self, before, after, self.dim),
            Claim.of(f"{self}: new rows are as declared", faults, self.init),
        ]
