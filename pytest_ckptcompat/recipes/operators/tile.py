"""More rows, each a copy of an old one."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, missized, outputs_of, size_after
from pytest_ckptcompat.recipes.promises import differing, grown, old_rows_kept
from pytest_ckptcompat.recipes.rows import bits, drawn, joined
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class tile(KeyWise):  # operators are named as recipes spell them
    """Grow a dimension by repeating what is there: new row i is old row ``i mod n``.

    ``Linear(256, 4)`` grown to 14 outputs is ``cat([w, w, w, w[0:2]])``, and so is its bias. The old rows
    keep their places, so a grown output layer gives the old outputs as it did. A transposed convolution has
    its outputs in ``dim=1``, and those of its bias in ``dim=0``.

    Attributes:
        key: an exact key or a glob.
        dim: the dimension that grows.
        to: its new size; the model's if it is left out.
        noise_std: standard deviation of normal noise on the new rows, by which they stop being exact copies.
        seed: of the noise.
        optim: optimizer state of the new rows: ``copy`` repeats the old rows' as the weights are, ``zeros``
            fills in zeros, ``reset`` starts the tensor's state anew.
    """

    rounds: ClassVar[bool] = False

    dim: int
    to: int | None = None
    noise_std: float = 0.0
    seed: int = 0
    optim: Literal["copy", "zeros", "reset"] = "copy"

    def caveat(self, state: State, target: State) -> str:
        """Repeated inputs count more than once; repeated outputs stand beside the old ones."""
        for key in self.tensors(state):
            if self.change(key, state, target) is not None:
                outputs = outputs_of(key, state, target)
                if self.dim % state[key].dim() != (outputs or 0):
                    return f"{self} repeats inputs{'' if outputs is not None else ', as far as shapes tell'}"
        return ""

    def change(self, key: str, state: State, target: State) -> Change | None:
        size = size_after(self, key, self.dim, self.to, state, target)
        if size is None:
            return None
        old = state[key].shape[self.dim]
        if size < old or old == 0:
            raise self.unfit(
                key, f"dimension {self.dim} has {old} and is to have {size}: tile makes more of what there is"
            )

        def make(tensor: torch.Tensor) -> torch.Tensor:
            new = self._repeated(tensor, size)
            if self.noise_std and not new.is_meta:
                added = new.narrow(self.dim, old, size - old)
                added += drawn(added, added.shape, self._noise, self.seed, key)
            return new

        def optimizer_transform(_: bool, tensor: torch.Tensor) -> torch.Tensor:
            new = self._repeated(tensor, size)
            if self.optim == "zeros":
                new.narrow(self.dim, old, size - old).zero_()
            return new

        return Change(make, None if self.optim == "reset" else optimizer_transform)

    def _repeated(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        whole, rest = divmod(size, tensor.shape[self.dim])
        return joined([*[tensor] * whole, tensor.narrow(self.dim, 0, rest)], self.dim)

    def _noise(self, tensor: torch.Tensor, generator: torch.Generator) -> None:
        tensor.normal_(0.0, self.noise_std, generator=generator)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Old rows are bit-equal, and row i is row ``i mod n``, but for the noise."""

        def faults() -> Iterator[str]:
            yield from missized(self, self.dim, lambda _: self.to, before, after, target)
            for key, old, new in grown(before, after, self.dim):
                rows = torch.arange(new.shape[self.dim]) % old.shape[self.dim]
                expected = bits(materialise(old)).index_select(self.dim, rows).view(old.dtype)
                yield from differing(key, expected, new, 7 * self.noise_std if self.noise_std else None)

        told = f"within 7 × {self.noise_std}" if self.noise_std else "bit for bit"
        repeated = Claim.of(f"{self}: row i is row i mod n", faults, told)
        return [old_rows_kept(self, before, after, self.dim), repeated]
