"""The operators `pad` and `inflate`: larger kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn import functional

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import KeyWise, model_has, shape
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.recipes.rows import bits, wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.plan import State


Margins = list[tuple[int, int]]
"""The numbers of zeros before and after, for each dimension from the first."""


@dataclass(frozen=True, repr=False)
class pad(KeyWise[Margins]):
    """Pad a tensor with zeros: a larger kernel that computes what the smaller one did, or more inputs.

    A convolution whose kernel grew by 2 keeps its function if its padding grows by 1.

    ``pad("conv1.weight")``

    Attributes:
        key: an exact key or a glob.
        sizes: the numbers of zeros before and after the last dimension, then the last but one, and so on, as
            in `torch.nn.functional.pad`; as many as the model's size needs, if they are left out.
        mode: where zeros go if only the model's size is known: ``centre`` puts half of them before, ``end``
            puts all of them after.
        optim: optimizer state: ``copy`` pads first moments with zeros and second moments with their mean;
            ``reset`` starts the tensor's state anew.
    """

    rounds: ClassVar[bool] = False
    promise: ClassVar[str] = "the centre is kept, the rest zero"
    kept: ClassVar[str] = "bit for bit"

    sizes: tuple[int, ...] | None = None
    mode: Literal["centre", "end"] = "centre"
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sizes is not None and (len(self.sizes) % 2 or min(self.sizes) < 0):
            raise RecipeError("pad: sizes must be pairs of numbers of zeros", key=self.key)

    def caveat(self, state: State, target: State) -> str:
        for key, margins in self.changes(state, target):
            for dim, (before, behind) in enumerate(margins):
                if (dim < 2 and before) or (dim >= 2 and before != behind):
                    return f"{self} moves {('outputs', 'inputs')[dim] if dim < 2 else 'the kernel'} of {key}"
        return ""

    def change(self, key: str, state: State, target: State) -> Margins | None:
        margins = self._margins(key, state, target)
        return margins if any(map(any, margins)) else None

    def _margins(self, key: str, state: State, target: State) -> Margins:
        """Return what to add; nothing if a glob's match has too few dimensions, or is not in the model."""
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        exact = key == self.key
        if self.sizes is not None:
            if len(self.sizes) > 2 * len(has):
                if exact:
                    raise self.unfit(key, f"it is {shown(has)}, with fewer dimensions than sizes")
                return []
            pairs = list(zip(self.sizes[::2], self.sizes[1::2], strict=True))
            return [(0, 0)] * (len(has) - len(pairs)) + pairs[::-1]
        if wanted is None and not exact:
            return []
        if wanted is None or len(wanted) != len(has) or any(w < h for h, w in zip(has, wanted, strict=True)):
            raise self.unfit(key, f"it is {shown(has)}, {model_has(wanted)}")
        more = [new - old for old, new in zip(has, wanted, strict=True)]
        return [(each // 2, each - each // 2) if self.mode == "centre" else (0, each) for each in more]

    def new_shape(self, change: Margins, old: torch.Tensor) -> Sequence[int]:
        return [before + size + behind for size, (before, behind) in zip(old.shape, change, strict=True)]

    def make(self, key: str, change: Margins, tensor: torch.Tensor) -> torch.Tensor:
        return functional.pad(bits(tensor), _flat(change)).view(tensor.dtype)

    def moments(self, key: str, change: Margins, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        fill = float(tensor.mean()) if squares and tensor.numel() else 0.0
        return functional.pad(tensor, _flat(change), value=fill)

    def faults(self, key: str, change: Margins, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        inside = tuple(slice(first, first + size) for (first, _), size in zip(change, old.shape, strict=True))
        yield from differing(key, old, new[inside])
        rest = new.clone()
        rest[inside] = torch.zeros_like(old)
        yield from differing(key, torch.zeros_like(new), rest)


def _flat(margins: Margins) -> list[int]:
    """Return margins as `torch.nn.functional.pad` takes them: from the last dimension on."""
    return [size for margin in reversed(margins) for size in margin]


@dataclass(frozen=True, repr=False)
class inflate(KeyWise[int]):
    """Inflate 2-D kernels (out, in, h, w) to 3-D (out, in, time, h, w).

    On a still clip, the new kernel gives the outputs that the old one gave for the image (I3D, Carreira and
    Zisserman 2017, arXiv:1705.07750). With ``centre``, this also holds at padded ends.

    ``inflate("conv1.weight")``

    Attributes:
        key: an exact key or a glob; of a glob's keys the kernels are inflated.
        time: the number of frames of the new kernel; the model's if it is left out.
        mode: ``mean`` divides the kernel among the frames, ``centre`` gives it to the middle one.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` repeats it for every frame, because on a
            still clip all frames have the same gradient.
    """

    computes: ClassVar[bool] = True
    promise: ClassVar[str] = "as before on a still clip"

    time: int | None = None
    mode: Literal["mean", "centre"] = "mean"
    optim: Literal["copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time is not None and self.time < 1:
            raise RecipeError("inflate: time must be at least 1", key=self.key)

    def caveat(self, state: State, target: State) -> str:
        return f"{self}: the model sees clips"

    def change(self, key: str, state: State, target: State) -> int | None:
        """Return how many frames, or None if a glob matched a tensor that is not a kernel to inflate."""
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        exact = key == self.key
        grows = wanted is not None and len(wanted) == 5
        if len(has) != 4 or not (exact or grows):
            if exact:
                raise self.unfit(key, f"it is {shown(has)}, which is not a 2-D kernel")
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
            kernel = tensor.to(wide(tensor)) / change
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
