"""Fake meta tensors that tell the model that they are on CUDA.

torch has fake CUDA tensors too, but they need a CUDA build, sometimes look for a driver, and abort the
process when autograd looks for a device guard or a context (always on a CPU-only build, and in every backward
pass on torch 2.6 without a CUDA device). Fake meta tensors do none of that and behave the same on every
build.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """The fake tensor mode of one simulated device. Copying a tensor copies neither mode nor device.

    Attributes:
        card: the simulated CUDA device, or the CPU.
        busy: whether one of torch's own kernels is running, which must see that the tensors are on meta.
    """

    def __init__(self, card: torch.device) -> None:
        super().__init__(allow_fallback_kernels=False, allow_non_fake_inputs=True)
        self.card = card
        self.busy = False

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class SimulatedTensor(FakeTensor):
    """A fake tensor on meta that tells the model that it is on CUDA."""

    @property
    def device(self) -> torch.device:
        """The simulated device, or the CPU."""
        real: torch.device = FakeTensor.device.__get__(self)
        mode: Fakes = self.fake_mode  # type: ignore[assignment]
        return mode.card if real.type == "meta" and not mode.busy else real

    @device.setter
    def device(self, device: torch.device) -> None:
        raise AttributeError("device is read-only")

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether `device` is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """Whether `device` is meta."""
        return self.device.type == "meta"

    def get_device(self) -> int:
        """Return the index of the CUDA device, or -1 for the CPU."""
        return self.device.index or 0 if self.is_cuda else -1

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Call ``Tensor.to`` with ``meta`` in place of ``cuda``."""
        return super().to(*map(_on_meta, args), **{key: _on_meta(value) for key, value in kwargs.items()})

    def cuda(self, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Move to ``meta`` in place of ``cuda``."""
        return super().to("meta", non_blocking=non_blocking, **kwargs)

    def new_tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Return a fake tensor with this data. ``Tensor.new_tensor`` would return a real one."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})


def simulated(value: Any) -> Any:
    """Make a fake tensor a `SimulatedTensor`, and return it; any other value is returned as it is."""
    if type(value) is FakeTensor:
        value.__class__ = SimulatedTensor
    return value


def _on_meta(value: Any) -> Any:
    """Return ``"meta"`` for an argument of ``to`` that names CUDA as text, device or number."""
    named = isinstance(value, str) and value.startswith("cuda")
    number = isinstance(value, int) and not isinstance(value, bool)
    return "meta" if named or number or (isinstance(value, torch.device) and value.type == "cuda") else value
