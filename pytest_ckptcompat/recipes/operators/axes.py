"""The operators `permute`, `transpose` and `reshape`: the same numbers in another order or shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import MAY_BE_EMPTY
from pytest_ckptcompat.recipes.per_tensor import KeyWise, shape
from pytest_ckptcompat.recipes.promises import differing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.plan import State

Axes = tuple[int, ...]
"""For each new axis, the old one."""


class Reordering(KeyWise[Axes]):
    """An operator that reorders axes. Matches of a glob that it can't reorder are skipped.

    A tensor that already has the model's shape, and would lose it, is skipped.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""
    promise: ClassVar[str] = "the way back gives the old tensor"
    kept: ClassVar[str] = "bit for bit"

    @property
    def order(self) -> Axes:
        """The old axis of each new axis."""
        raise NotImplementedError

    def change(self, key: str, state: State, target: State) -> Axes | None:
        has, order, exact = tuple(state[key].shape), self.order, key == self.key
        if len(has) != len(order):
            if exact:
                raise self.unfit(key, f"it is {shown(has)}, not of {len(order)} dimensions")
            return None
        new = tuple(has[axis] for axis in order)
        return order if exact or new == has or shape(target.get(key)) != has else None

    def new_shape(self, change: Axes, old: torch.Tensor) -> Sequence[int]:
        return [old.shape[axis] for axis in change]

    def make(self, key: str, change: Axes, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(change).clone(memory_format=torch.contiguous_format)

    def faults(self, key: str, change: Axes, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        yield from differing(key, old, torch.movedim(new, list(range(new.dim())), list(change)))


@dataclass(frozen=True, repr=False)
class permute(Reordering):
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
            raise RecipeError(f"permute: dims must name every axis once, not {list(self.dims)}", key=self.key)

    @property
    def order(self) -> Axes:
        return tuple(dim % len(self.dims) for dim in self.dims)


@dataclass(frozen=True, repr=False)
class transpose(Reordering):
    """Swap the two axes of matrices: a ``Conv1D`` of GPT-2 becomes a ``Linear``, a Flax kernel a weight.

    ``transpose("*.c_attn.weight")``

    Attributes:
        key: an exact key or a glob; of a glob's keys the matrices are transposed.
        optim: optimizer state: ``copy`` transposes it as well, ``reset`` starts it anew.
    """

    optim: Literal["copy", "reset"] = "copy"

    @property
    def order(self) -> Axes:
        return 1, 0


@dataclass(frozen=True, repr=False)
class reshape(KeyWise[tuple[int, ...]]):
    """Reshape a tensor: the same numbers in the same order (`torch.reshape`).

    A ``Linear`` becomes a 1x1 convolution and back, ``()`` becomes ``(1,)``, ``(1, 64)`` becomes ``(64,)``.

    ``reshape("head.weight")``

    Attributes:
        key: an exact key or a glob; of a glob's keys those are reshaped that have as many elements.
        shape: the new shape, in which one size may be -1; the model's if it is left out.
        optim: optimizer state: ``copy`` reshapes it as well, ``reset`` starts it anew.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""
    promise: ClassVar[str] = "the same numbers in the same order"
    kept: ClassVar[str] = "bit for bit"

    shape: tuple[int, ...] | None = field(default=None, metadata=MAY_BE_EMPTY)
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.shape or ()
        if any(size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise RecipeError(
                f"reshape: {list(sizes)} is not a valid shape: sizes are 0 or more, and one may be -1",
                key=self.key,
            )

    def change(self, key: str, state: State, target: State) -> tuple[int, ...] | None:
        """Return the new shape, or None if a glob matched a tensor with another number of elements."""
        has, exact = tuple(state[key].shape), key == self.key
        wanted = shape(target.get(key)) if self.shape is None else self.shape
        if wanted is None:
            if exact:
                raise self.unfit(key, "the model does not have it, so the shape must be given")
            return None
        known = prod(size for size in wanted if size != -1)
        if -1 in wanted and known and prod(has) % known == 0:
            wanted = tuple(prod(has) // known if size == -1 else size for size in wanted)
        if -1 not in wanted and prod(wanted) == prod(has):
            return None if wanted == has else wanted
        if exact:
            raise self.unfit(
                key, f"it is {shown(has)}, whose {prod(has)} elements do not fill {shown(wanted)}"
            )
        return None

    def new_shape(self, change: tuple[int, ...], old: torch.Tensor) -> Sequence[int]:
        return change

    def make(self, key: str, change: tuple[int, ...], tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(change).clone(memory_format=torch.contiguous_format)

    def faults(
        self, key: str, change: tuple[int, ...], old: torch.Tensor, new: torch.Tensor
    ) -> Iterator[str]:
        yield from differing(key, old.flatten(), new.flatten())
