"""The operator `reshape`: the same numbers in another shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import MAY_BE_EMPTY
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, shape
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class reshape(KeyWise):
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

    def change(self, key: str, state: State, target: State) -> Change | None:
        has, wanted = tuple(state[key].shape), self._wanted(key, state, target)
        if wanted is None or wanted == has:
            return None

        def make(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_meta:
                return tensor.new_empty(wanted)
            return tensor.reshape(wanted).clone(memory_format=torch.contiguous_format)

        return Change(make, (lambda _, tensor: make(tensor)) if self.optim == "copy" else None)

    def _wanted(self, key: str, state: State, target: State) -> tuple[int, ...] | None:
        """Return the new shape of a tensor, or None if a glob matched one with another number of elements.

        Raises:
            RecipeError: the key is exact, and its elements do not fill the shape.
        """
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
            return wanted
        if exact:
            raise self.unfit(
                key, f"it is {shown(has)}, whose {prod(has)} elements do not fill {shown(wanted)}"
            )
        return None

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the flattened new tensor is the flattened old one."""

        def faults() -> Iterator[str]:
            for key in self.tensors(before):
                wanted = self._wanted(key, before, target)
                if wanted is None:
                    continue
                old, new = materialise(before[key]), materialise(after[key])
                if tuple(new.shape) != wanted:
                    yield f"{escape(key)}: it is {shown(tuple(new.shape))} instead of {shown(wanted)}"
                else:
                    yield from differing(key, old.flatten(), new.flatten())

        yield Claim.of(f"{self}: the same numbers in the same order", faults, "bit for bit")
