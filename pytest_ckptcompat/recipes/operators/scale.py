"""The operator `scale`: weights multiplied by a number."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import KeyWise
from pytest_ckptcompat.recipes.promises import pieces
from pytest_ckptcompat.recipes.rows import wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


Factors = float | tuple[float, ...]


@dataclass(frozen=True, repr=False)
class scale(KeyWise[Factors]):
    """Multiply: ``scale("head.weight", 0.5)``, or row by row: ``scale("head.weight", [0.5, 2.0], dim=0)``.

    Attributes:
        key: an exact key or a glob; of a glob's keys those are multiplied that hold floats.
        factor: one number, or one for each row of `dim`.
        dim: the dimension that the factors count.
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

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function changes: the weights are multiplied."""
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
        exact = torch.promote_types(wide(tensor), torch.float32)
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
            if off := sum(_apart(was, now, factor) for was, now in pieces(one, other)):
                yield f"{escape(key)}: {off} elements are not {factor} times the old"


def _apart(old: torch.Tensor, new: torch.Tensor, factor: float) -> int:
    """Count where `new` is not `factor` times `old`; rounding of subnormal numbers is absolute."""
    info = torch.finfo(old.dtype)
    wide = torch.complex128 if old.is_complex() else torch.float64
    exact = old.to(wide) * factor
    allowed = 2 * info.eps * exact.abs() + info.smallest_normal * info.eps
    close = (new.to(wide) - exact).abs() <= allowed
    return int((~close & ~(new.isnan() & exact.isnan())).sum())
