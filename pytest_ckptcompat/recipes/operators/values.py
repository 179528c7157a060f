"""The operators `scale` and `cast`: each value changed by itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core import keys
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.per_tensor import KeyWise
from pytest_ckptcompat.recipes.promises import Computed, pieces
from pytest_ckptcompat.recipes.rows import wide
from pytest_ckptcompat.tensors.difference import magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.recipes.plan import State


Factors = float | tuple[float, ...]


@dataclass(frozen=True, repr=False)
class scale(KeyWise[Factors]):
    """Multiply: ``scale("head.weight", 0.5)``, or row by row: ``scale("head.weight", [0.5, 2.0], dim=0)``.

    Attributes:
        key: an exact key or a glob; of a glob's keys those are multiplied that hold floats.
        factor: one number, or one for each row of `dim`.
        dim: the dimension to whose rows the factors belong.
        optim: optimizer state: ``reset`` starts it anew, ``copy`` keeps it as it is.
    """

    promise: ClassVar[str] = "linear"

    factor: float | tuple[float, ...]
    dim: int | None = None
    optim: Literal["copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.factor, tuple) != (self.dim is not None):
            raise RecipeError("scale: dim goes with a list of factors, one for each row", key=self.key)
        factors = self.factor if isinstance(self.factor, tuple) else (self.factor,)
        if not all(map(isfinite, factors)):
            raise RecipeError("scale: a factor is infinite or NaN", key=self.key)

    def caveat(self, state: State, target: State) -> str:
        return f"{self} multiplies weights"

    def change(self, key: str, state: State, target: State) -> Factors | None:
        """Return the factors, or None if they don't fit a glob's match."""
        tensor = state[key]
        why = ""
        if not tensor.is_floating_point() and not tensor.is_complex():
            why = "it holds no floats"
        elif isinstance(self.factor, tuple) and self.dim is not None:
            has, count = tuple(tensor.shape), len(self.factor)
            if not -len(has) <= self.dim < len(has) or has[self.dim] != count:
                why = f"it is {shown(has)}, with not {count} in dimension {self.dim}"
        if why and key == self.key:
            raise self.unfit(key, why)
        return None if why else self.factor

    def make(self, key: str, change: Factors, tensor: torch.Tensor) -> torch.Tensor:
        exact = wide(tensor)
        factor = torch.tensor(change, dtype=exact, device=tensor.device)
        if self.dim is not None:
            factor = factor.reshape(-1, *[1] * (tensor.dim() - 1 - self.dim % tensor.dim()))
        return (tensor.to(exact) * factor).to(tensor.dtype)

    def moments(self, key: str, change: Factors, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        return tensor

    def faults(self, key: str, change: Factors, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        rows = (
            [(old, new)] if self.dim is None else zip(old.unbind(self.dim), new.unbind(self.dim), strict=True)
        )
        factors = change if isinstance(change, tuple) else (change,)
        for (one, other), factor in zip(rows, factors, strict=True):
            for was, now in pieces(one, other):
                exact = was.to(torch.complex128 if was.is_complex() else torch.float64) * factor
                yield from Computed().faults(key, exact, now, ulps=2, what=f"{factor} times the old")


@dataclass(frozen=True, repr=False)
class cast(KeyWise[torch.dtype]):
    """Convert: ``cast("*", "bfloat16")``.

    Attributes:
        key: an exact key or a glob; of a glob's keys those are converted that hold floats, if the dtype does,
            or integers, if it does.
        dtype: torch's name without ``torch.``; the model's dtype, if it is left out.
        optim: optimizer state: ``copy`` converts it as well, ``reset`` starts it anew.
    """

    changes_function: ClassVar[str] = ""

    dtype: str | None = None
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype is not None and (self.dtype not in ITEMSIZE or not hasattr(torch, self.dtype)):
            near = keys.nearest(self.dtype, ITEMSIZE, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"cast: {python(self.dtype)} is not a dtype{hint}", key=self.key)

    def change(self, key: str, state: State, target: State) -> torch.dtype | None:
        """Return the new dtype of a tensor, or None if it stays, or if a glob matched one of another kind."""
        dtype: torch.dtype | None
        has, exact = state[key].dtype, key == self.key
        if self.dtype is None:
            dtype = getattr(target.get(key), "dtype", None)
            if dtype is None and exact:
                raise self.unfit(key, "the model does not have it, so the dtype must be given")
            return None if dtype == has else dtype
        dtype = getattr(torch, self.dtype)
        alike = exact or dtype.is_floating_point == has.is_floating_point
        return dtype if alike and dtype != has else None

    def new_dtype(self, change: torch.dtype, old: torch.Tensor) -> torch.dtype:
        return change

    def make(self, key: str, change: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(change)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that finite values stay finite and are only rounded; the proof reports by how much."""
        rounding = Rounding()

        def faults(key: str, change: torch.dtype, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
            if new.is_floating_point() and old.is_floating_point():
                yield from rounding.faults(key, old, new)
            elif not all(_equal(one, other) for one, other in pieces(old, new)):
                yield f"{escape(key)}: the new dtype does not hold all values"

        promise = "finite, and rounded at most"
        return [self.claim(promise, before, after, target, faults=faults, kept=lambda: str(rounding))]


@dataclass
class Rounding:
    """The effect of a cast on values.

    Attributes:
        largest: the largest change of a value.
        zeroed: how many nonzero values became zero.
    """

    largest: float = 0.0
    zeroed: int = 0

    def __str__(self) -> str:
        if not self.largest:
            return "no value changes"
        zeroed = f", {self.zeroed} values became 0" if self.zeroed else ""
        return f"values change by up to {magnitude(self.largest)}{zeroed}"

    def faults(self, key: str, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        """Yield what is more than rounding, and note the rounding."""
        info = torch.finfo(new.dtype)
        lost = off = 0
        for one, other in ((one.double(), other.double()) for one, other in pieces(old, new)):
            known = one.isfinite()
            apart = torch.where(known, (other - one).abs(), 0)
            lost += int((known & ~other.isfinite()).sum())
            off += int((apart > info.eps * one.abs() + info.smallest_normal * info.eps).sum())
            self.zeroed += int(((one != 0) & (other == 0)).sum())
            self.largest = max(self.largest, float(apart.max()) if len(apart) else 0)
        if lost:
            yield f"{escape(key)}: {lost} values are beyond the new dtype"
        if off:
            yield f"{escape(key)}: {off} values are not the old ones rounded"


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.to(torch.complex128), other.to(torch.complex128))
