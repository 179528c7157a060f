"""The operators `reduce` and `repeat_channels`: fewer or more input channels or heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.per_tensor import KeyWise, outputs_of, shape
from pytest_ckptcompat.recipes.promises import Computed
from pytest_ckptcompat.recipes.rows import Rows, resized, wide
from pytest_ckptcompat.tensors.difference import magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.recipes.plan import State


class Sizes(NamedTuple):
    """How many blocks of rows become one, and how many rows a block has."""

    several: int
    block: int


@dataclass(frozen=True, repr=False, init=False)
class reduce(KeyWise[Sizes]):
    """Reduce consecutive rows, or blocks of rows, to fewer by their mean or sum.

    For grey images: ``reduce("conv1.weight", dim=1, groups=1, reduction="sum")``. The outputs are those for
    an image with three equal channels (timm's ``adapt_input_conv``). For grouped queries:
    ``reduce("*.k_proj.*", dim=0, groups=4)``. The key or value heads of each group become their mean (GQA,
    Ainslie et al. 2023, arXiv:2305.13245).

    Attributes:
        key: an exact key or a glob.
        dim: the dimension whose rows are joined.
        groups: how many channels or heads remain. The model's size tells how many rows a head has.
        reduction: ``mean`` or ``sum``; in Python also called `op`.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` joins it as well, by the mean.
    """

    computes: ClassVar[bool] = True

    dim: int
    groups: int
    reduction: Literal["mean", "sum"] = "mean"
    optim: Literal["copy", "reset"] = "reset"

    def __init__(
        self,
        key: str,
        dim: int,
        groups: int,
        reduction: Literal["mean", "sum"] = "mean",
        optim: Literal["copy", "reset"] = "reset",
        *,
        op: Literal["mean", "sum"] | None = None,
    ) -> None:
        if op is not None and reduction not in ("mean", op):
            raise RecipeError("reduce: op is another name of reduction: give one of them", key=key)
        given = {"key": key, "dim": dim, "groups": groups, "reduction": op or reduction, "optim": optim}
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise RecipeError("reduce: groups must be at least 1", key=self.key)

    def caveat(self, state: State, target: State) -> str:
        return f"{self} makes one of several"

    def change(self, key: str, state: State, target: State) -> Sizes | None:
        """Return how many blocks become one, and the rows of a block; None if a glob's match stays."""
        if not self.has_dimension(key, self.dim, state, target):
            return None
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        exact, n = key == self.key, self.groups
        if wanted == has or (wanted is None and not exact):
            return None
        old = has[self.dim]
        new = n if wanted is None or len(wanted) != len(has) else wanted[self.dim]
        if new % n or old % max(new, 1) or old == new:
            to = "" if new == n else f" and is to have {new}"
            raise self.unfit(key, f"dimension {self.dim} has {old}{to}, which can't be reduced to {n} groups")
        return Sizes(old // new, new // n)

    def new_shape(self, change: Sizes, old: torch.Tensor) -> Sequence[int]:
        return resized(old, self.dim, self.groups * change.block)

    def make(self, key: str, change: Sizes, tensor: torch.Tensor) -> torch.Tensor:
        return self._joined(tensor, change, self.reduction)

    def moments(self, key: str, change: Sizes, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        return self._joined(tensor, change, "mean")

    def _joined(self, tensor: torch.Tensor, sizes: Sizes, reduction: str) -> torch.Tensor:
        dim = self.dim % tensor.dim()
        computed = tensor.to(wide(tensor))
        split = computed.reshape(*tensor.shape[:dim], self.groups, *sizes, *tensor.shape[dim + 1 :])
        whole = split.mean(dim + 1) if reduction == "mean" else split.sum(dim + 1)
        return whole.flatten(dim, dim + 1).to(tensor.dtype)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that each row is the mean or the sum of the rows that it replaces."""
        return [self.claim(f"each group's {self.reduction} is kept", before, after, target)]

    def faults(self, key: str, change: Sizes, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        several, block = change
        for row, found in enumerate(new.unbind(self.dim)):
            head, inside = divmod(row, block)
            firsts = [(head * several + each) * block + inside for each in range(several)]
            parts = torch.stack([old.select(self.dim, first).double() for first in firsts])
            exact = parts.sum(0) / (several if self.reduction == "mean" else 1)
            what = f"the {self.reduction} of old rows {firsts}"
            yield from Computed().faults(key, exact, found, parts.abs().sum(0), ulps=several, what=what)


@dataclass(frozen=True, repr=False)
class repeat_channels(KeyWise[Rows]):
    """Repeat the input channels of a convolution: the n old ones, cut to N, times n/N.

    For an image whose channels are repeated in the same way, the outputs stay about the same, and exactly the
    same only if n divides N (timm's ``adapt_input_conv``).

    ``repeat_channels("conv1.weight")``

    Attributes:
        key: an exact key or a glob.
        to: the new number of channels; the model's if it is left out.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` repeats it.
    """

    computes: ClassVar[bool] = True

    to: int | None = None
    optim: Literal["copy", "reset"] = "reset"

    def caveat(self, state: State, target: State) -> str:
        return f"{self}: the model takes other inputs"

    def change(self, key: str, state: State, target: State) -> Rows | None:
        """Return the row map: channel i is channel ``i mod n`` times n/N; None if the tensor stays."""
        size = self.new_size(key, 1, self.to, state, target)
        if size is None:
            return None
        old = state[key].shape[1]
        if size < old or old == 0:
            raise self.unfit(key, f"it has {old} channels and is to have {size}: reduce makes fewer")
        if outputs_of(key, state, target) == 1:
            how = f"tile({python(key)}, dim=1) and tile of its bias, dim=0, make more of those"
            raise self.unfit(key, f"dimension 1 counts its outputs, as its bias tells: {how}")
        return replace(Rows.repeated(old, size), factors=(old / size,) * size)

    def new_shape(self, change: Rows, old: torch.Tensor) -> Sequence[int]:
        return resized(old, 1, len(change.origin))

    def make(self, key: str, change: Rows, tensor: torch.Tensor) -> torch.Tensor:
        return change.taken(tensor, 1)

    def moments(self, key: str, change: Rows, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        return replace(change, factors=None).taken(tensor, 1)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that channel i is channel ``i mod n`` times n/N. This keeps the sum if n divides N."""
        said: dict[str, None] = {}

        def faults(key: str, change: Rows, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
            yield from change.faults(key, old, new, 1)
            apart = magnitude(float((new.double().sum(1) - old.double().sum(1)).abs().max()))
            sums = f"sums change by up to {apart}, as {old.shape[1]} does not divide {new.shape[1]}"
            said[sums if new.shape[1] % old.shape[1] else "their sum is kept"] = None

        promise = "channel i is channel i mod n, times n/N"
        return [self.claim(promise, before, after, target, faults=faults, kept=lambda: "; ".join(said))]
