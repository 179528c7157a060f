"""The operator `inflate`: 2-D kernels to 3-D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import KeyWise, model_has, shape
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.recipes.rows import bits, wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class inflate(KeyWise[int]):
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
    promise: ClassVar[str] = "as before on a clip that stands still"

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

    def change(self, key: str, state: State, target: State) -> int | None:
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
        if self.time is not None:
            return self.time
        if wanted is None or not grows:
            raise self.unfit(key, f"{model_has(wanted)}, so the time must be given")
        return wanted[2]

    def new_shape(self, change: int, old: torch.Tensor) -> Sequence[int]:
        return (*old.shape[:2], change, *old.shape[2:])

    def make(self, key: str, change: int, tensor: torch.Tensor) -> torch.Tensor:
        if self.mode == "mean":
            kernel = tensor.to(torch.promote_types(wide(tensor), torch.float32)) / change
            return _repeated(kernel.to(tensor.dtype), change)
        clip = torch.zeros_like(_repeated(bits(tensor), change))
        clip[:, :, change // 2] = bits(tensor)
        return clip.view(tensor.dtype)

    def moments(self, key: str, change: int, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        return _repeated(tensor, change)

    def faults(self, key: str, change: int, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        """Yield a fault unless the frames sum to the old kernel: all equal, or the others zero."""
        allowed = 2 * torch.finfo(new.dtype).eps * float(old.double().abs().max())
        yield from differing(key, old.double(), new.double().sum(2), allowed)
        for place, frame in enumerate(new.unbind(2)):
            if self.mode == "mean":
                yield from differing(key, old.double() / change, frame.double(), allowed / change)
            elif place != change // 2:
                yield from differing(key, torch.zeros_like(frame), frame)


def _repeated(tensor: torch.Tensor, time: int) -> torch.Tensor:
    return bits(tensor).unsqueeze(2).repeat(1, 1, time, 1, 1).view(tensor.dtype)
