"""Estimate the peak CUDA memory of a forward pass with fake tensors."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from typing import Self

_BLOCK = 512
"""torch's allocator rounds sizes up to multiples of this many bytes."""


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """A mode that counts every CUDA storage from its creation until it is freed.

    Attention counts like the fused kernel on CUDA: inputs and output, but not the scores of all pairs.
    Workspaces of cuDNN and cuBLAS are not counted.

    Attributes:
        peak: the most bytes that were in use at the same time.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._living: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._attention = _Attention(self)
        self.paused = False

    def hold(self, *values: Any) -> int:
        """Count existing tensors. Return the bytes that they added."""
        before = self._now
        for leaf in tree_leaves(values):
            if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                self._add(leaf.untyped_storage())
        return self._now - before

    def __enter__(self) -> Self:
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._attention.__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            self.hold(result)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._living:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK

        def freed(_: object) -> None:
            if self._living.pop(place, None) is not None:
                self._now -= size

        self._living[place] = weakref.ref(storage, freed)
        self._now += size
        self.peak = max(self.peak, self._now)


class _Attention(TorchFunctionMode):
    """A mode that pauses the counting inside calls of attention, and counts only their results."""

    def __init__(self, memory: PeakMemory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention or self._memory.paused:
            return func(*args, **(kwargs or {}))
        self._memory.paused = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._memory.paused = False
        self._memory.hold(result)
        return result
