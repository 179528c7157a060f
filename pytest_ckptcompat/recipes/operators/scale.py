"""The operator `scale`: weights multiplied by a number."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise
from pytest_ckptcompat.recipes.promises import pieces
from pytest_ckptcompat.recipes.rows import wide
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class scale(KeyWise):
    """Multiply: ``scale("head.weight", 0.5)``, or row by row: ``scale("head.weight", [0.5, 2.0], dim=0)``.

    Attributes:
        key: an exact key or a glob; of a glob's keys those are multiplied that hold floats.
        factor: one number, or one for each row of `dim`.
        dim: the dimension that the factors count.
        optim: optimizer state: ``reset`` starts it anew, ``copy`` keeps it as it is.
    """

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

    def change(self, key: str, state: State, target: State) -> Change | None:
        why = self._misfit(state[key])
        if why:
            if key == self.key:
                raise self.unfit(key, why)
            return None

        def make(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_meta:
                return tensor.new_empty(tensor.shape)
            factor = torch.tensor(self.factor, dtype=torch.promote_types(wide(tensor), torch.float32))
            if self.dim is not None:
                factor = factor.reshape(
                    [-1 if dim == self.dim % tensor.dim() else 1 for dim in range(tensor.dim())]
                )
            return (tensor.to(factor.dtype) * factor.to(tensor.device)).to(tensor.dtype)

        return Change(make, (lambda _, tensor: tensor) if self.optim == "copy" else None)

    def _misfit(self, tensor: torch.Tensor) -> str:
        if not tensor.is_floating_point() and not tensor.is_complex():
            return "it holds no floats"
        if self.dim is None or not isinstance(self.factor, tuple):
            return ""
        fits = -tensor.dim() <= self.dim < tensor.dim() and tensor.shape[self.dim] == len(self.factor)
        return (
            ""
            if fits
            else f"it is {shown(tuple(tensor.shape))}, with not {len(self.factor)} in dimension {self.dim}"
        )

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that every element is the old one times its factor, up to rounding."""

        def faults() -> Iterator[str]:
            for key in self.tensors(before):
                if self._misfit(before[key]):
                    continue
                old, new = materialise(before[key]), materialise(after[key])
                if new.shape != old.shape:
                    yield f"{escape(key)}: it is {shown(tuple(new.shape))}"
                    return
                for one, other, factor in self._rows(old, new):
                    if off := sum(_apart(was, now, factor) for was, now in pieces(one, other)):
                        yield f"{escape(key)}: {off} elements are not {factor} times the old"

        return [Claim.of(f"{self}: linear", faults)]

    def _rows(
        self, old: torch.Tensor, new: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        if self.dim is None or not isinstance(self.factor, tuple):
            yield old, new, self.factor  # type: ignore[misc]  # a number where there is no dim
        else:
            yield from zip(old.unbind(self.dim), new.unbind(self.dim), self.factor, strict=True)


def _apart(old: torch.Tensor, new: torch.Tensor, factor: float) -> int:
    """Count where `new` is not `factor` times `old`; rounding of subnormal numbers is absolute."""
    info = torch.finfo(old.dtype)
    wide = torch.complex128 if old.is_complex() else torch.float64
    exact = old.to(wide) * factor
    allowed = 2 * info.eps * exact.abs() + info.smallest_normal * info.eps
    close = (new.to(wide) - exact).abs() <= allowed
    return int((~close & ~(new.isnan() & exact.isnan())).sum())
