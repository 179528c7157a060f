"""The operators `permute` and `transpose`: axes in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, shape
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


class Axes(KeyWise):
    """An operator that reorders axes. Matches of a glob that it can't reorder are skipped.

    A tensor that already has the model's shape, and would lose it, is skipped.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    optim: str

    @property
    def order(self) -> tuple[int, ...]:
        """The old axis of each new axis."""
        raise NotImplementedError

    def change(self, key: str, state: State, target: State) -> Change | None:
        if not self._fits(key, state, target):
            return None
        order = self.order

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.permute(order).clone(memory_format=torch.contiguous_format)

        return Change(make, (lambda _, tensor: make(tensor)) if self.optim == "copy" else None)

    def _fits(self, key: str, state: State, target: State) -> bool:
        has, order = tuple(state[key].shape), self.order
        if len(has) != len(order):
            if key == self.key:
                raise self.unfit(key, f"it is {shown(has)}, not of {len(order)} dimensions")
            return False
        wanted = shape(target.get(key))
        return key == self.key or wanted != has or tuple(has[axis] for axis in order) == has

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that every element has moved to its index in the new order."""

        def faults() -> Iterator[str]:
            for key in self.tensors(before):
                if self._fits(key, before, target):
                    old, new = materialise(before[key]), materialise(after[key])
                    for axis, came in enumerate(self.order):
                        if new.shape[axis] != old.shape[came]:
                            yield f"{escape(key)}: {tuple(new.shape)} from {tuple(old.shape)}"
                            return
                    back = torch.movedim(new, list(range(new.dim())), list(self.order))
                    yield from differing(key, old, back)

        return [Claim.of(f"{self}: the way back gives the old tensor", faults, "bit for bit")]


@dataclass(frozen=True, repr=False)
class permute(Axes):
    """Permute the axes: ``permute("conv.weight", dims=[3, 2, 0, 1])``.

    Attributes:
        key: an exact key or a glob.
        dims: for each new axis the old one, as `torch.permute` counts.
        optim: optimizer state: ``copy`` permutes it as well, ``reset`` starts it anew.
    """

    dims: tuple[int, ...]
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.order) != list(range(len(self.dims))):
            raise RecipeError(f"permute: dims wants every axis once, not {list(self.dims)}", key=self.key)

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(dim % len(self.dims) for dim in self.dims)


@dataclass(frozen=True, repr=False)
class transpose(Axes):
    """Swap the two axes of matrices: a ``Conv1D`` of GPT-2 becomes a ``Linear``, a Flax kernel a weight.

    ``transpose("*.c_attn.weight")``

    Attributes:
        key: an exact key or a glob; of a glob's keys the matrices are transposed.
        optim: optimizer state: ``copy`` transposes it as well, ``reset`` starts it anew.
    """

    optim: Literal["copy", "reset"] = "copy"

    @property
    def order(self) -> tuple[int, ...]:
        return 1, 0
