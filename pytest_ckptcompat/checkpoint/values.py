"""The values of a checkpoint as tensors: all of them, or on demand."""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.tensors.deferred import DeferredTensor

from .reader import buffer, copy, memory_of, new, read, span, view
from .storages import Storages
from .wrappers import at, path_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contents import Contents


class Values:
    """Reads the values of one checkpoint."""

    def __init__(self, contents: Contents) -> None:
        if sys.byteorder != "little":
            raise CheckpointError("values are read on little-endian machines only")
        self._contents = contents
        self._loaded: Any = None

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        """The values of one tensor, in memory of their own; the strides are kept where they leave no gaps.

        Raises:
            CheckpointError: they can't be read.
        """
        if spec.note:
            return self._by_torch(spec)
        with Storages(self._contents) as storages:
            return read(storages, spec)

    def read_into(self, spec: TensorSpec, destination: torch.Tensor) -> None:
        """What ``destination.copy_(tensor(spec))`` does, without a second copy of the values."""
        destination = destination.detach()
        if destination.device.type == "meta":
            return
        if spec.note:
            destination.copy_(self._by_torch(spec))
            return
        with Storages(self._contents) as storages:
            copy(storages, spec, destination)

    def state_dict(
        self, entries: Mapping[str, object], metadata: Mapping[str, object] | None
    ) -> OrderedDict[str, Any]:
        """All values; tied tensors, and other views of one storage, share memory."""
        bounds = _bounds(entries.values())
        memories: dict[str, torch.UntypedStorage] = {}
        made: OrderedDict[str, Any] = OrderedDict()
        with Storages(self._contents) as storages:
            for key, value in entries.items():
                if not isinstance(value, TensorSpec):
                    made[key] = value
                elif value.note:
                    made[key] = self._by_torch(value)
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
        """All tensors on the meta device; tied tensors share storage."""
        bounds = _bounds(entries.values())
        memories: dict[str, torch.UntypedStorage] = {}
        made: OrderedDict[str, Any] = OrderedDict()
        for key, value in entries.items():
            if not isinstance(value, TensorSpec):
                made[key] = value
            elif value.storage not in bounds:
                made[key] = new(value, "meta")
            else:
                low, high = bounds[value.storage]
                if value.storage not in memories:
                    memories[value.storage] = buffer(high - low, "meta")
                made[key] = view(memories[value.storage], value, low)
        return _with_metadata(made, metadata)

    def stored(
        self, entries: Mapping[str, object], metadata: Mapping[str, object] | None
    ) -> OrderedDict[str, Any]:
        """All tensors as `DeferredTensor`: nothing is read yet."""
        made = self.meta(entries, metadata)
        for key, spec in entries.items():
            if isinstance(spec, TensorSpec):
                made[key] = DeferredTensor.of(self, spec, made[key])
        return made

    def _by_torch(self, spec: TensorSpec) -> torch.Tensor:
        """The values of a tensor without a plain layout, as torch itself loads them."""
        path, note = display(self._contents.path), escape(spec.note)
        where = path_to(self._contents.header.tree, spec)
        if where is None or not self._contents.header.format.startswith("torch-"):
            raise CheckpointError(
                f"{path}: a tensor's values have no plain layout ({note}), and can't be read"
            )
        if self._loaded is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    self._loaded = torch.load(self._contents.path, map_location="cpu", weights_only=True)
                except Exception as error:
                    reason = escape(str(error).partition("\n")[0])
                    raise CheckpointError(
                        f"{path}: a tensor has no plain layout ({note}), and torch.load(weights_only=True) "
                        f"says: {reason}"
                    ) from None
        found = at(self._loaded, where)
        if not isinstance(found, torch.Tensor):
            raise CheckpointError(f"{path}: torch.load gives no tensor where the header has one ({note})")
        return found


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
