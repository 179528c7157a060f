"""Fake tensors: meta ones that tell the model they are on CUDA.

torch has fake CUDA tensors too, but they need a CUDA build, look for a driver here and there, and abort the
process where autograd looks for a device guard or a context (on a CPU-only build always, on torch 2.6
without a card in every backward pass). Fake meta tensors do none of that, and behave the same on every
build.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class Player(Protocol):
    """What the tensors play to be on.

    Attributes:
        device: the card that is played, or the CPU.
        busy: whether one of torch's own kernels runs, which must see the tensors as what they are.
    """

    device: torch.device
    busy: bool


class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """The mode of the tensors of one card; code that copies such a tensor copies neither."""

    def __init__(self, card: Player) -> None:
        super().__init__(allow_fallback_kernels=False, allow_non_fake_inputs=True)
        self.card = card

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class PlaysCuda(FakeTensor):
    """A fake tensor that tells the model it is on CUDA where it is on meta.

    torch's own kernels see it as it is: they run while the card is ``busy``.
    """

    @property
    def device(self) -> torch.device:
        """The card's device, or the CPU."""
        told: torch.device = FakeTensor.device.__get__(self)
        card = self.fake_mode.card  # type: ignore[attr-defined]
        return card.device if told.type == "meta" and not card.busy else told

    @device.setter
    def device(self, device: torch.device) -> None:
        raise AttributeError("device is read-only")

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As `device` says."""
        return self.device.type == "cuda"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """As `device` says."""
        return self.device.type == "meta"

    def get_device(self) -> int:
        """The card's number; -1 for the CPU."""
        return self.device.index or 0 if self.is_cuda else -1

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``Tensor.to``, with meta in place of the card."""
        return super().to(*map(_played, args), **{key: _played(value) for key, value in kwargs.items()})

    def cuda(self, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """``Tensor.cuda``, likewise."""
        return super().to("meta", non_blocking=non_blocking, **kwargs)

    def new_tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """``Tensor.new_tensor``, which otherwise gives a tensor that is not fake."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})


def dressed(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor; a fake one plays CUDA from now on."""
    if type(tensor) is FakeTensor:
        tensor.__class__ = PlaysCuda
    return tensor


def _played(value: Any) -> Any:
    """``"meta"`` where an argument of ``to`` names CUDA: as text, as a device or by its number."""
    named = isinstance(value, str) and value.startswith("cuda")
    number = isinstance(value, int) and not isinstance(value, bool)
    return "meta" if named or number or (isinstance(value, torch.device) and value.type == "cuda") else value
