"""Write a checkpoint in the layout of ``torch.save``: a zip with one pickle and one record per storage.

``torch.save`` needs all tensors in memory at once. Here, one tensor at a time is read, written and released.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from .written import Value

if TYPE_CHECKING:
    from collections.abc import Iterable

_ALIGNMENT = 64  # alignment of records, so that torch can map them into memory
_PADDING = b"FB"  # the extra field that torch uses to align a record
_ZIP64_FIELD = 20


def write_torch_zip(file: BinaryIO, content: Any, root: str) -> None:
    """Write `content` so that ``torch.load(file, weights_only=True)`` returns it.

    Args:
        file: an empty seekable file.
        content: dicts, `OrderedDict` (with attributes such as ``_metadata``), lists, tuples, numbers,
            strings, None, and a `Value` for every tensor. Values with equal ``same`` share storage.
        root: the name of the folder inside the zip, usually the file's stem.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(content)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _record(archive, f"{root}/data.pkl", len(buffer.getbuffer()), [buffer.getbuffer()])
        _record(archive, f"{root}/byteorder", len(sys.byteorder), [sys.byteorder.encode()])
        for number, value in enumerate(pickler.values):
            _record(archive, f"{root}/data/{number}", value.nbytes, value.pieces())
        _record(archive, f"{root}/version", 2, [b"3\n"])


def _record(archive: zipfile.ZipFile, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
    info = zipfile.ZipInfo(name)  # with a fixed date, so that the same content gives the same bytes
    info.file_size = size
    large = size * 1.05 > zipfile.ZIP64_LIMIT  # the condition under which zipfile adds a zip64 field
    assert archive.fp is not None
    header = 30 + len(name.encode()) + 4 + (_ZIP64_FIELD if large else 0)
    padding = -(archive.fp.tell() + header) % _ALIGNMENT
    info.extra = _PADDING + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as entry:
        entry.writelines(pieces)


class _Storage:
    """A placeholder in the pickle for the storage of a value. Only its number is written."""

    def __init__(self, number: int, value: Value) -> None:
        self.number = number
        self.value = value


class _Pickler(pickle.Pickler):
    """A pickler that writes each `Value` as the call with which torch rebuilds a tensor."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=2)
        self.values: list[Value] = []
        self._storages: dict[object, _Storage] = {}

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Value):
            return NotImplemented
        storage = self._storages.get(obj.same)
        if storage is None:
            storage = self._storages[obj.same] = _Storage(len(self.values), obj)
            self.values.append(obj)
        stride = torch.empty(obj.shape, device="meta").stride()
        arguments: tuple[Any, ...] = (storage, 0, obj.shape, stride, False, OrderedDict())
        if _storage_type(obj.dtype) is None:
            return torch._utils._rebuild_tensor_v3, (*arguments, obj.dtype)
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        kind = _storage_type(obj.value.dtype)
        size = obj.value.numel if kind else obj.value.nbytes
        return ("storage", kind or torch.UntypedStorage, str(obj.number), "cpu", size)


def _storage_type(dtype: torch.dtype) -> Any:
    """Return the typed storage class of a dtype (``torch.FloatStorage``), or None."""
    name = torch.storage._dtype_to_storage_type_map().get(dtype)
    return getattr(torch, name) if name else None
