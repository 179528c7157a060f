"""Storages, as a pickle of torch refers to them by persistent ids."""

from __future__ import annotations

from typing import Any

from .pickle_stubs import Global, Storage, Stub
from .torch_arguments import itemsize_of

_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8", "QInt32Storage": "qint32", "QUInt8Storage": "quint8",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
"""Element type of a storage class; an untyped one is bytes, and the tensor over it names its dtype."""

_BIGGEST = (1 << 63) - 1
_LONGEST_KEY = 4096


class Storages:
    """Notes the storages that a pickle refers to.

    Args:
        legacy: whether it is a file in the layout before 1.6, where torch reads views of storages, and none
            without a dtype.

    Attributes:
        storages: by their keys.
    """

    def __init__(self, *, legacy: bool = False) -> None:
        self.storages: dict[str, Storage] = {}
        self._legacy = legacy
        self._kinds: dict[Global, tuple[str, int]] = {}

    def storage(self, reference: Any) -> object:
        """Return what a persistent id means: a storage, or the class of an old whole module.

        The id is ``("storage", class, key, location, numel)``, perhaps with a view of the storage behind, or
        ``("module", class, ...)``.
        """
        if type(reference) is not tuple or not 2 <= len(reference) <= 6:
            raise ValueError("a persistent id that torch does not write")
        if reference[0] == "module" and type(reference[1]) in (Global, Stub):  # a stub was pickled by value
            return reference[1]
        if type(reference[1]) is not Global:
            raise ValueError("a persistent id that torch does not write")
        what, kind, key, place, numel, *view = reference
        if what != "storage" or type(key) is not str or type(place) is not str or len(key) > _LONGEST_KEY:
            raise ValueError("a persistent id that torch does not write")
        if type(numel) is not int or not 0 <= numel <= _BIGGEST:
            raise ValueError("a storage of impossible size")
        dtype, itemsize = self._kinds.get(kind) or self._kind(kind)
        if view and not self._legacy:
            raise ValueError("a view of a storage, which torch writes in its old layout only")
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, dtype, itemsize, numel)
        elif storage.dtype != dtype or storage.numel != numel:
            raise ValueError(f"storage {key[:80]!r} has two types or sizes")
        return storage if not view or view[0] is None else _part_of(storage, view[0])

    def _kind(self, kind: Global) -> tuple[str, int]:
        """Element type and size of a storage class."""
        module, _, name = kind.name.rpartition(".")
        if module not in ("torch", "torch.cuda", "torch.storage") or name not in _DTYPES:
            raise ValueError(f"storage class {kind.name} is unknown")
        if name == "UntypedStorage" and self._legacy:
            raise ValueError("a storage without a dtype (float8, uint16), which torch.load can't read here")
        self._kinds[kind] = _DTYPES[name], itemsize_of(_DTYPES[name])
        return self._kinds[kind]


def _part_of(storage: Storage, view: Any) -> Storage:
    """Return a part of a storage (torch before 1.0): ``(key, offset, size)``."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise TypeError("a view of a storage that torch does not write")
    _, start, numel = view
    if (
        type(start) is not int
        or type(numel) is not int
        or start < 0
        or not 0 <= numel <= storage.numel - start
    ):
        raise ValueError("a view that reaches beyond its storage")
    return Storage(storage.key, storage.dtype, storage.itemsize, numel, start)
