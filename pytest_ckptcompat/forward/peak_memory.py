"""The memory of a card that a forward pass would take: what lives at once, followed on fake tensors."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_BLOCK = 512
"""Bytes: torch's allocator gives multiples of them."""


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """Inside, every storage on the card counts from the operation that makes it until nothing holds it.

    Attention counts as the fused kernel that a card runs: its inputs and its output, not the scores of all
    pairs. Workspaces of cuDNN and cuBLAS do not count.

    Attributes:
        peak: bytes that lived at once, at most.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler once more

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._living: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._attention = _Attention(self)
        self.paused = False

    def hold(self, *values: Any) -> int:
        """Count tensors that are there already; the bytes that they added."""
        before = self._now
        for leaf in tree_leaves(values):
            if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                self._add(leaf.untyped_storage())
        return self._now - before

    def __enter__(self) -> Self:
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._attention.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

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
    """Hears calls of attention, inside of which nothing counts."""

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
