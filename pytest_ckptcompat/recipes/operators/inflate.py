"""The operator `inflate`: 2-D kernels to 3-D."""

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
from pytest_ckptcompat.recipes.rows import bits, wide
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class inflate(KeyWise):
    """Inflate 2-D kernels (out, in, h, w) to 3-D (out, in, time, h, w).

    On a clip that stands still the new kernel gives what the old one gave on the picture (I3D, Carreira and
    Zisserman 2017, arXiv:1705.07750); with ``centre`` also where padding in time is seen.

    ``inflate("conv1.weight")``

    Attributes:
        key: an exact key or a glob; of a glob's keys the kernels are inflated.
        time: how many frames the kernel sees; the model's if it is left out.
        mode: ``mean`` divides the kernel among the frames, ``centre`` gives it to the middle one.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` gives every frame the old one's, since on a
            clip that stands still every frame has its gradient.
    """

    computes: ClassVar[bool] = True

    time: int | None = None
    mode: Literal["mean", "centre"] = "mean"
    optim: Literal["copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time is not None and self.time < 1:
            raise RecipeError("inflate: time wants a number of frames, at least 1", key=self.key)

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function changes: the inputs are clips."""
        return f"{self}: the model sees clips"

    def change(self, key: str, state: State, target: State) -> Change | None:
        time = self._frames(key, state, target)
        if time is None:
            return None

        def make(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_meta:
                return tensor.new_empty((*tensor.shape[:2], time, *tensor.shape[2:]))
            if self.mode == "mean":
                kernel = tensor.to(torch.promote_types(wide(tensor), torch.float32)) / time
                return _repeated(kernel.to(tensor.dtype), time)
            clip = torch.zeros_like(_repeated(bits(tensor), time))
            clip[:, :, time // 2] = bits(tensor)
            return clip.view(tensor.dtype)

        return Change(make, (lambda _, tensor: _repeated(tensor, time)) if self.optim == "copy" else None)

    def _frames(self, key: str, state: State, target: State) -> int | None:
        """Return how many frames, or None if a glob matched a tensor that is not a kernel to inflate.

        Raises:
            RecipeError: an exact key is not a kernel, or its time can't be determined.
        """
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        exact = key == self.key
        grows = wanted is not None and len(wanted) == 5
        if len(has) != 4 or not (exact or grows):
            if exact:
                raise self.unfit(key, f"it is {shown(has)}, which is not a kernel of pictures")
            return None
        if self.time is None and (wanted is None or not grows):
            model = "the model does not have it" if wanted is None else f"the model has {shown(wanted)}"
            raise self.unfit(key, f"{model}, so the time must be given")
        return self.time if self.time is not None else wanted[2] if wanted is not None else None

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the frames sum to the old kernel: all are equal, or all but the middle one are zero."""

        def faults() -> Iterator[str]:
            for key in self.tensors(before):
                time = self._frames(key, before, target)
                if time is not None:
                    yield from self._faults(key, materialise(before[key]), materialise(after[key]), time)

        return [Claim.of(f"{self}: as before on a clip that stands still", faults)]

    def _faults(self, key: str, old: torch.Tensor, new: torch.Tensor, time: int) -> Iterator[str]:
        wanted = (*old.shape[:2], time, *old.shape[2:])
        if tuple(new.shape) != wanted:
            yield f"{escape(key)}: shape {tuple(new.shape)} instead of {wanted}"
            return
        allowed = 2 * torch.finfo(new.dtype).eps * float(old.double().abs().max())
        yield from differing(key, old.double(), new.double().sum(2), allowed)
        frames = new.unbind(2)
        if self.mode == "centre":
            for frame in frames[: time // 2] + frames[time // 2 + 1 :]:
                yield from differing(key, torch.zeros_like(frame), frame)
        else:
            for frame in frames:
                yield from differing(key, old.double() / time, frame.double(), allowed / time)


def _repeated(tensor: torch.Tensor, time: int) -> torch.Tensor:
    return bits(tensor).unsqueeze(2).repeat(1, 1, time, 1, 1).view(tensor.dtype)
