"""The same values in another dtype."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from pytest_ckptcompat import keys
from pytest_ckptcompat.errors import RecipeError
from pytest_ckptcompat.stored import materialise
from pytest_ckptcompat.tensors import ITEMSIZE

from .arguments import python
from .growing import promise
from .keywise import Change, KeyWise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.rules import Promise

    from .plan import State


@dataclass(frozen=True, repr=False)
class cast(KeyWise):
    """Convert: ``cast("*", "bfloat16")``.

    Attributes:
        key: an exact key or a glob; of a glob's keys those are converted that hold floats, if the dtype does,
            or integers, if it does.
        dtype: torch's name without ``torch.``; the model's dtype, if it is left out.
        optim: optimizer state: ``copy`` converts it as well, ``reset`` starts it anew.
    """

    dtype: str | None = None
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype is not None and (self.dtype not in ITEMSIZE or not hasattr(torch, self.dtype)):
            near = keys.nearest(self.dtype, ITEMSIZE, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"cast: {python(self.dtype)} is no dtype{hint}", key=self.key)

    def change(self, key: str, state: State, target: State) -> Change | None:
        dtype = self._wanted(key, state[key], target)
        if dtype is None or dtype == state[key].dtype:
            return None

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype)

        return Change(make, (lambda _, tensor: tensor.to(dtype)) if self.optim == "copy" else None)

    def _wanted(self, key: str, value: Any, target: State) -> torch.dtype | None:
        """The dtype that a tensor is to have; None where a glob matched one of another kind."""
        if self.dtype is None:
            found = getattr(target.get(key), "dtype", None)
            if found is None and key == self.key:
                raise self.unfit(key, "the model does not have it, so the dtype must be given")
            return found
        dtype: torch.dtype = getattr(torch, self.dtype)
        alike = key == self.key or dtype.is_floating_point == value.dtype.is_floating_point
        return dtype if alike else None

    def prove(self, before: State, after: State, target: State) -> list[Promise]:
        """What was finite is finite, and no value is off by more than the new dtype's rounding."""

        def faults() -> Iterator[str]:
            for key in keys.select(self.key, before.keys()):
                if not isinstance(before[key], torch.Tensor):
                    continue
                old, new = materialise(before[key]), materialise(after[key])
                dtype = self._wanted(key, old, target)
                if dtype is None:
                    continue
                if new.dtype != dtype:
                    yield f"{keys.escape(key)}: it is {new.dtype}"
                elif new.is_floating_point() and old.is_floating_point():
                    yield from _off(key, old.double(), new.double(), torch.finfo(dtype))
                elif not torch.equal(old.to(torch.complex128), new.to(torch.complex128)):
                    yield f"{keys.escape(key)}: the new dtype does not hold all values"

        return [promise(f"{self}: finite, and rounded at most", faults())]


def _off(key: str, old: torch.Tensor, new: torch.Tensor, info: torch.finfo) -> Iterator[str]:
    lost = int((old.isfinite() & ~new.isfinite()).sum())
    if lost:
        yield f"{keys.escape(key)}: {lost} values are beyond the new dtype"
    off = (new - old).abs() > info.eps * old.abs() + info.smallest_normal * info.eps
    if bool((off & old.isfinite()).any()):
        yield f"{keys.escape(key)}: {int(off.sum())} values are not the old ones rounded"
