"""A stem for pictures with more channels."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.per_tensor import Change, KeyWise, missized, outputs_of, size_after
from pytest_ckptcompat.recipes.promises import differing, grown
from pytest_ckptcompat.recipes.rows import resized, wide
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class repeat_channels(KeyWise):
    """Give a convolution more input channels: repeat the n old ones, cut to N, times n/N.

    On a picture that repeats its channels likewise, the sums stay about what they were; exactly so only where
    n divides N (timm's ``adapt_input_conv``).

    Attributes:
        key: an exact key or a glob.
        to: the new number of channels; the model's if it is left out.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` repeats it.
    """

    to: int | None = None
    optim: Literal["copy", "reset"] = "reset"

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """The pictures are other ones."""
        return f"{self}: the model takes other inputs"

    def change(self, key: str, state: State, target: State) -> Change | None:
        size = size_after(self, key, 1, self.to, state, target)
        if size is None:
            return None
        old = state[key].shape[1]
        if size < old or old == 0:
            raise self.unfit(key, f"it has {old} channels and is to have {size}: reduce makes fewer")
        if outputs_of(key, state, target) == 1:
            how = f"tile({python(key)}, dim=1) and tile of its bias, dim=0, make more of those"
            raise self.unfit(key, f"dimension 1 counts its outputs, as its bias tells: {how}")

        def repeated(tensor: torch.Tensor, factor: float) -> torch.Tensor:
            if tensor.is_meta:
                return tensor.new_empty(resized(tensor, 1, size))
            channels = torch.arange(size, device=tensor.device) % old
            computed = tensor.to(torch.promote_types(wide(tensor), torch.float32))
            return computed.index_select(1, channels).mul_(factor).to(tensor.dtype)

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return repeated(tensor, old / size)

        return Change(make, (lambda _, tensor: repeated(tensor, 1)) if self.optim == "copy" else None)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Channel i is channel ``i mod n`` times n/N; the sum over the channels is kept where n divides N."""
        said: dict[str, None] = {}

        def faults() -> Iterator[str]:
            yield from missized(self, 1, lambda _: self.to, before, after, target)
            for key, old, new in grown(before, after, 1):
                one, other = materialise(old).double(), materialise(new).double()
                n, more = one.shape[1], other.shape[1]
                eps = torch.finfo(new.dtype).eps
                for channel in range(more):
                    expected = one[:, channel % n] * n / more
                    yield from differing(
                        key, expected, other[:, channel], 2 * eps * float(expected.abs().max())
                    )
                apart = magnitude(float((other.sum(1) - one.sum(1)).abs().max()))
                sums = f"sums change by up to {apart}, as {n} does not divide {more}"
                said[sums if more % n else "their sum is kept"] = None  # which follows

        told = f"{self}: channel i is channel i mod n, times n/N"
        return [Claim.of(told, faults, lambda: "; ".join(said))]
