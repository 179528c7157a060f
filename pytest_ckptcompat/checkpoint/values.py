"""The values of a checkpoint as tensors: all of them, or on demand."""

from __future__ import annotations

import sys
from collections import OrderedDict
from contextlib import contextmanager
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
"""Bytes that are taken to be free where the system does not say."""


class Values:
    """Reads the values of one checkpoint."""

    def __init__(self, contents: Contents) -> None:
        if sys.byteorder != "little":
            raise CheckpointError("values are read on little-endian machines only")
        self._contents = contents
        self._kept: Storages | None = None

    def expect(self, entries: Mapping[str, object]) -> None:
        """Be asked for these tensors one by one: of a remote checkpoint, further ones come with the first."""
        if is_url(self._contents.path):
            self._kept = Storages(self._contents, _bounds(entries.values()), sure=False)

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        """The values of one tensor, in memory of their own; the strides are kept where they leave no gaps.

        Raises:
            CheckpointError: they can't be read.
        """
        if spec.note:
            return self._composed(spec)
        with self._storages() as storages:
            return read(storages, spec)

    def read_into(self, spec: TensorSpec, destination: torch.Tensor) -> None:
        """What ``destination.copy_(tensor(spec))`` does, without a second copy of the values."""
        destination = destination.detach()
        if destination.device.type == "meta":
            return
        if spec.note:
            destination.copy_(self._composed(spec))
            return
        with self._storages() as storages:
            copy(storages, spec, destination)

    def state_dict(
        self, entries: Mapping[str, object], metadata: Mapping[str, object] | None
    ) -> OrderedDict[str, Any]:
        """All values; tied tensors, and other views of one storage, share memory."""
        bounds = _bounds(entries.values())
        memories: dict[str, torch.UntypedStorage] = {}
        made: OrderedDict[str, Any] = OrderedDict()
        with self._storages(bounds) as storages:
            for key, value in entries.items():
                if not isinstance(value, TensorSpec) or (
                    isinstance(value, LearnedSpec) and is_extra_state(key)
                ):
                    made[key] = given(value, self.tensor)
                elif value.note:
                    made[key] = self._composed(value)
                elif value.storage not in bounds or storages.in_chunks(value.storage):
                    made[key] = read(storages, value)
                else:
                    low, high = bounds[value.storage]
                    if value.storage not in memories:
                        memories[value.storage] = memory = buffer(high - low)
                        storages.source(value.storage)(low, memory_of(memory))
                    made[key] = view(memories[value.storage], value, low)
        return _with_metadata(made, metadata)

    def meta(
        self, entries: Mapping[str, object], metadata: Mapping[str, object] | None
    ) -> OrderedDict[str, Any]:
        """All tensors on the meta device; tied tensors share storage.

        Quantized, sparse and nested ones have no equal there, and a model's code looks at its extra state:
        their values are read.
        """
        bounds = _bounds(entries.values())
        memories: dict[str, torch.UntypedStorage] = {}
        made: OrderedDict[str, Any] = OrderedDict()
        for key, value in entries.items():
            if not isinstance(value, TensorSpec):
                made[key] = given(value, self.tensor)
            elif is_extra_state(key):
                made[key] = self._extra_state(value)
            elif isinstance(value, CompositeSpec) and value.kind in NOT_ON_META:
                made[key] = self._composed(value)
            elif value.storage not in bounds:
                made[key] = new(value, "meta")
            else:
                low, high = bounds[value.storage]
                if value.storage not in memories:
                    memories[value.storage] = buffer(high - low, "meta")
                made[key] = view(memories[value.storage], value, low)
        return _with_metadata(made, metadata)

    def stored(
        self, entries: Mapping[str, object], metadata: Mapping[str, object] | None, *, once: bool = False
    ) -> OrderedDict[str, Any]:
        """All tensors as `DeferredTensor`: nothing is read yet.

        Remote files are not asked after every tensor whether they have changed: `Files.check_unchanged` is to
        be called in the end.
        """
        made = self.meta(entries, metadata)
        if is_url(self._contents.path):
            self._kept = Storages(self._contents, _bounds(entries.values()))
        room = Room((free() or _ROOM) // 4)
        witnesses: dict[object, Witness] = {}
        for key, spec in entries.items():
            if isinstance(made[key], torch.Tensor) and made[key].is_meta and isinstance(spec, TensorSpec):
                same = spec.storage, spec.offset, spec.shape, spec.stride, spec.dtype
                witness = witnesses.setdefault(same if spec.storage else key, Witness(room)) if once else None
                made[key] = DeferredTensor.of(self, spec, made[key], witness)
        return made

    def _extra_state(self, spec: TensorSpec) -> Any:
        """The values of a tensor that is a module's extra state; a lock has none."""
        header = self._contents.header
        if not isinstance(spec, CompositeSpec) and spec.numel and spec.storage not in header.storages:
            return Unread.of("torch.Tensor", f"it is a tensor, of which a {header.format} has no values")
        return given(spec, self.tensor)

    def _composed(self, spec: TensorSpec) -> torch.Tensor:
        """The values of a tensor without a plain layout, from the tensors that it is made of."""
        with self._noted():
            try:
                return composed(spec, self.tensor)
            except CheckpointError as error:
                raise about(self._contents.path, error) from None

    @contextmanager
    def _storages(self, expected: Iterable[str] = ()) -> Iterator[Storages]:
        """The storages, open meanwhile."""
        with self._noted():
            if self._kept is not None:
                yield self._kept
            else:
                with Storages(self._contents, expected) as storages:
                    yield storages

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Note with the files what can't be read: torch may catch the error, and raise its own."""
        try:
            yield
        except CheckpointError as error:
            self._contents.files.failure = self._contents.files.failure or error
            raise


def _bounds(entries: Iterable[object]) -> dict[str, tuple[int, int]]:
    """The first and last byte of every storage that the tensors of the state dict use."""
    bounds: dict[str, tuple[int, int]] = {}
    for spec in entries:
        if isinstance(spec, TensorSpec) and spec.storage and spec.numel and not spec.note:
            begin, end = span(spec)
            low, high = bounds.get(spec.storage, (begin, end))
            bounds[spec.storage] = (min(low, begin - begin % 16), max(high, end))  # fits any dtype over it
    return bounds


def _with_metadata(
    made: OrderedDict[str, Any], metadata: Mapping[str, object] | None
) -> OrderedDict[str, Any]:
    if metadata is not None:
        made._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]  # as torch does
    return made
