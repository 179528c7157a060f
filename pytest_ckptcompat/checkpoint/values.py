"""Read the values of a checkpoint as tensors, all of them or on demand."""

from __future__ import annotations

import sys
from collections import OrderedDict
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.memory import free
from pytest_ckptcompat.core.redaction import is_url
from pytest_ckptcompat.core.tensor_spec import CompositeSpec, LearnedSpec, TensorSpec
from pytest_ckptcompat.files.paths import about
from pytest_ckptcompat.tensors.deferred import DeferredTensor
from pytest_ckptcompat.tensors.unread import Unread
from pytest_ckptcompat.tensors.witness import Room, Witness

from .composite import NOT_ON_META, composed
from .entries import is_extra_state
from .objects import given
from .reader import buffer, copy, memory_of, new, read, span, view
from .storages import Storages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .contents import Contents


_ROOM = 1 << 30
"""The free memory in bytes that is assumed if the system does not report it."""


class Values:
    """A reader for the values of a checkpoint's tensors.

    Args:
        contents: the checkpoint.
        entries: the state dict.
        metadata: torch's ``_metadata`` of it, or None.
        one_by_one: whether single tensors will be read. Parts of remote files are then read ahead.
    """

    def __init__(
        self,
        contents: Contents,
        entries: Mapping[str, object],
        metadata: Mapping[str, object] | None = None,
        *,
        one_by_one: bool = False,
    ) -> None:
        if sys.byteorder != "little":
            raise CheckpointError("values are read on little-endian machines only")
        self._contents = contents
        self._entries = entries
        self._metadata = metadata
        self._bounds = _bounds(entries.values())
        self._kept: Storages | None = None
        if one_by_one and is_url(contents.path):
            self._kept = Storages(contents, self._bounds, sure=False)

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        """Read the values of one tensor into new memory. Strides are kept if they leave no gaps."""
        if spec.note:
            return self._composed(spec)
        with self._storages() as storages:
            return read(storages, spec)

    def read_into(self, spec: TensorSpec, destination: torch.Tensor) -> None:
        """Do ``destination.copy_(tensor(spec))`` without a second copy of the values."""
        destination = destination.detach()
        if destination.device.type == "meta":
            return
        if spec.note:
            destination.copy_(self._composed(spec))
            return
        with self._storages() as storages:
            copy(storages, spec, destination)

    def state_dict(self) -> OrderedDict[str, Any]:
        """Read all values. Tied tensors and other views of one storage share memory."""
        with self._storages(self._bounds) as storages:
            return self._made(storages)

    def meta(self) -> OrderedDict[str, Any]:
        """Return all tensors on the meta device. Tied tensors share storage.

        The values of quantized, sparse and nested tensors are read because the meta device does not have
        them, and those of extra state because a model's code looks at them.
        """
        return self._made(None)

    def _made(self, storages: Storages | None) -> OrderedDict[str, Any]:
        """Make all entries: on the CPU, with values from the storages, or on the meta device without them."""
        bounds = self._bounds
        memories: dict[str, torch.UntypedStorage] = {}
        made: OrderedDict[str, Any] = OrderedDict()
        for key, value in self._entries.items():
            if not isinstance(value, TensorSpec):
                made[key] = given(value, self.tensor)
            elif is_extra_state(key) and (storages is None or isinstance(value, LearnedSpec)):
                made[key] = self._extra_state(value)
            elif value.note and (storages is not None or getattr(value, "kind", "") in NOT_ON_META):
                made[key] = self._composed(value)
            elif value.storage not in bounds or (storages is not None and storages.in_chunks(value.storage)):
                made[key] = new(value, "meta") if storages is None else read(storages, value)
            else:
                low, high = bounds[value.storage]
                if value.storage not in memories:
                    memory = memories[value.storage] = buffer(
                        high - low, "meta" if storages is None else "cpu"
                    )
                    if storages is not None:
                        storages.source(value.storage)(low, memory_of(memory))
                made[key] = view(memories[value.storage], value, low)
        if self._metadata is not None:
            made._metadata = OrderedDict(self._metadata)  # type: ignore[attr-defined]  # as torch does
        return made

    def stored(self, *, once: bool = False) -> OrderedDict[str, Any]:
        """Return all tensors as `DeferredTensor`, whose values are read later.

        Remote files are not checked for changes after every tensor. Call `Files.check_unchanged` at the end.
        """
        made = self.meta()
        if is_url(self._contents.path):
            self._kept = Storages(self._contents, self._bounds)
        room = Room((free() or _ROOM) // 4)
        witnesses: dict[object, Witness] = {}
        for key, spec in self._entries.items():
            if isinstance(made[key], torch.Tensor) and made[key].is_meta and isinstance(spec, TensorSpec):
                same = spec.storage, spec.offset, spec.shape, spec.stride, spec.dtype
                witness = witnesses.setdefault(same if spec.storage else key, Witness(room)) if once else None
                made[key] = DeferredTensor.of(self, spec, made[key], witness)
        return made

    def _extra_state(self, spec: TensorSpec) -> Any:
        """Read a tensor that is a module's extra state, or return an `Unread` for a lock."""
        header = self._contents.header
        if not isinstance(spec, CompositeSpec) and spec.numel and spec.storage not in header.storages:
            return Unread.of("torch.Tensor", f"it is a tensor, of which a {header.format} has no values")
        return given(spec, self.tensor)

    def _composed(self, spec: TensorSpec) -> torch.Tensor:
        """Read a tensor without a plain layout."""
        with self._noted():
            try:
                return composed(spec, self.tensor)
            except CheckpointError as error:
                raise about(self._contents.path, error) from None

    @contextmanager
    def _storages(self, expected: Iterable[str] = ()) -> Iterator[Storages]:
        """Open the storages inside the block."""
        kept = self._kept
        with (
            self._noted(),
            Storages(self._contents, expected) if kept is None else nullcontext(kept) as storages,
        ):
            yield storages

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Remember a read error in `Files.failure`, because torch may catch it and raise its own."""
        try:
            yield
        except CheckpointError as error:
            self._contents.files.failure = self._contents.files.failure or error
            raise


def _bounds(entries: Iterable[object]) -> dict[str, tuple[int, int]]:
    """Return the range of bytes in every storage that the tensors of the state dict use."""
    bounds: dict[str, tuple[int, int]] = {}
    for spec in entries:
        if isinstance(spec, TensorSpec) and spec.storage and spec.numel and not spec.note:
            begin, end = span(spec)
            low, high = bounds.get(spec.storage, (begin, end))
            bounds[spec.storage] = (min(low, begin - begin % 16), max(high, end))  # aligned for any dtype
    return bounds
