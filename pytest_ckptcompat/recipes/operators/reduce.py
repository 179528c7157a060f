"""The operator `reduce`: fewer rows, each from several old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, shape
from pytest_ckptcompat.recipes.rows import resized, wide
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False, init=False)
class reduce(KeyWise):
    """Reduce consecutive rows, or blocks of rows, to fewer by their mean or sum.

    A stem for grey pictures is ``reduce("conv1.weight", dim=1, groups=1, reduction="sum")``: on a picture
    whose three channels are equal it gives what it gave (timm's ``adapt_input_conv``). Key and value heads
    for grouped queries are ``reduce("*.k_proj.*", dim=0, groups=4)``: the heads that share one become their
    mean (GQA, Ainslie et al. 2023, arXiv:2305.13245).

    Attributes:
        key: an exact key or a glob.
        dim: the dimension whose rows are joined.
        groups: how many remain: channels, or heads. A head is as many rows as the model's size gives each.
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
            raise RecipeError("reduce: groups wants how many remain, at least 1", key=self.key)

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function changes: other inputs, or heads that are merged."""
        return f"{self} makes one of several"

    def change(self, key: str, state: State, target: State) -> Change | None:
        sizes = self._sizes(key, state, target)
        if sizes is None:
            return None
        several, block = sizes

        def joined(tensor: torch.Tensor, op: str) -> torch.Tensor:
            dim = self.dim % tensor.dim()
            if tensor.is_meta:
                return tensor.new_empty(resized(tensor, dim, self.groups * block))
            computed = tensor.to(torch.promote_types(wide(tensor), torch.float32))
            split = computed.reshape(
                *tensor.shape[:dim], self.groups, several, block, *tensor.shape[dim + 1 :]
            )
            whole = split.mean(dim + 1) if op == "mean" else split.sum(dim + 1)
            return whole.reshape(resized(tensor, dim, self.groups * block)).to(tensor.dtype)

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return joined(tensor, self.reduction)

        return Change(make, (lambda _, tensor: joined(tensor, "mean")) if self.optim == "copy" else None)

    def _sizes(self, key: str, state: State, target: State) -> tuple[int, int] | None:
        """Return how many blocks become one, and the rows of a block; None if a glob's match stays."""
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        exact, n = key == self.key, self.groups
        if not -len(has) <= self.dim < len(has):
            if exact or (wanted is not None and wanted != has):
                raise self.unfit(key, f"it is {shown(has)}, with no dimension {self.dim}")
            return None
        if wanted == has or (wanted is None and not exact):
            return None
        old = has[self.dim]
        new = n if wanted is None or len(wanted) != len(has) else wanted[self.dim]
        if new % n or old % max(new, 1) or old == new:
            to = "" if new == n else f" and is to have {new}"
            raise self.unfit(key, f"dimension {self.dim} has {old}{to}: that makes no {n} groups")
        return old // new, new // n

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that each row is the mean or the sum of the rows that it replaces."""

        def faults() -> Iterator[str]:
            for key in self.tensors(before):
                sizes = self._sizes(key, before, target)
                if sizes is not None:
                    yield from self._faults(key, materialise(before[key]), materialise(after[key]), *sizes)

        return [Claim.of(f"{self}: each group's {self.reduction} is kept", faults)]

    def _faults(
        self, key: str, old: torch.Tensor, new: torch.Tensor, several: int, block: int
    ) -> Iterator[str]:
        if new.shape[self.dim] * several != old.shape[self.dim]:
            yield f"{escape(key)}: {old.shape[self.dim]} rows became {new.shape[self.dim]}"
            return
        for row, found in enumerate(new.double().unbind(self.dim)):
            head, inside = divmod(row, block)
            firsts = [(head * several + each) * block + inside for each in range(several)]
            parts = torch.stack([old.select(self.dim, first).double() for first in firsts])
            expected = parts.sum(0) / (several if self.reduction == "mean" else 1)
            allowed = several * torch.finfo(new.dtype).eps * parts.abs().sum(0)
            close = (found - expected).abs() <= allowed + torch.finfo(new.dtype).tiny
            if not bool((close | (found.isnan() & expected.isnan())).all()):
                yield f"{escape(key)}: row {row} is not the {self.reduction} of old rows {firsts}"
                return
