"""The tensors of a checkpoint, read one after the other into the same memory."""

from __future__ import annotations

import torch

from pytest_ckptcompat.tensors.deferred import DeferredTensor, materialise

_PAGES = 1 << 20  # bytes from which it takes noticeable time to have memory for them


class Reader:
    """Reads into memory that the next tensor overwrites."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """The values, until the next call."""
        nbytes = stored.numel() * stored.element_size()
        if not isinstance(stored, DeferredTensor) or nbytes < _PAGES:
            return materialise(stored)
        if self._memory.numel() < nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # not both at once
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(stored.dtype).view(stored.shape).copy_(stored)
