"""The operator `repeat_channels`: a stem for images with more channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.per_tensor import KeyWise, outputs_of
from pytest_ckptcompat.recipes.rows import Rows, resized
from pytest_ckptcompat.tensors.difference import magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class repeat_channels(KeyWise[Rows]):
    """Repeat the input channels of a convolution: the n old ones, cut to N, times n/N.

    On a picture that repeats its channels likewise, the sums stay about what they were; exactly so only where
    n divides N (timm's ``adapt_input_conv``).

    ``repeat_channels("conv1.weight")``

    Attributes:
        key: an exact key or a glob.
        to: the new number of channels; the model's if it is left out.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` repeats it.
    """

    computes: ClassVar[bool] = True

    to: int | None = None
    optim: Literal["copy", "reset"] = "reset"

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function changes: the inputs are different."""
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
