"""Read the tensors of a checkpoint one after the other into the same memory."""

from __future__ import annotations

import torch

from pytest_ckptcompat.tensors.deferred import DeferredTensor, materialise

_PAGES = 1 << 20  # bytes above which allocating memory takes noticeable time


class Reader:
    """Reads tensors into memory that the next tensor overwrites."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the values, which are valid until the next call."""
        nbytes = stored.numel() * stored.element_size()
        if not isinstance(stored, DeferredTensor) or nbytes < _PAGES:
            return materialise(stored)
        if self._memory.numel() < nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # not both at once
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(stored.dtype).view(stored.shape).copy_(stored)
