"""Reads ranges of a checkpoint's storages, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import CheckpointError
from .formats.zip_directory import data_offset
from .keys import escape

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .checkpoint import Contents
    from .files import File
    from .tensors import Extent


class Storages:
    """The storages of one checkpoint, open for reading: a context manager.

    When it closes, the files are looked at once more: what was read of a file that changed meanwhile is no
    checkpoint's values.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._open: dict[str, File] = {}
        self._begins: dict[Extent, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for file in self._open.values():
                    file.check_unchanged()
        finally:
            for file in self._open.values():
                file.close()

    def extents(self, storage: str) -> tuple[Extent, ...]:
        """Where the bytes of a storage lie.

        Raises:
            CheckpointError: nowhere.
        """
        found = self._contents.header.storages.get(storage, ())
        if not found:
            raise CheckpointError(
                f"{escape(self._contents.path)} holds no values ({self._contents.header.format})"
            )
        return found

    def in_chunks(self, storage: str) -> bool:
        """Whether a storage is one tensor in several blocks."""
        return bool(self.extents(storage)[0].size)

    def read(self, storage: str, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of a storage from its byte `start` on; not for one in chunks.

        Raises:
            CheckpointError: they can't be read, or the file changed.
        """
        (extent,) = self.extents(storage)
        self.read_extent(extent, start, into)

    def read_extent(self, extent: Extent, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of an extent from its byte `start` on; errors as in `read`."""
        if start + into.nbytes > extent.nbytes:
            raise CheckpointError(f"{escape(extent.file)}: a tensor reaches beyond its storage")
        file = self._file(extent.file)
        file.readinto_at(self._begin(file, extent) + start, into)

    def _file(self, path: str) -> File:
        if path not in self._open:
            self._open[path] = self._contents.files.open(path)
        return self._open[path]

    def _begin(self, file: File, extent: Extent) -> int:
        if not extent.member:
            return extent.offset
        if extent not in self._begins:
            self._begins[extent] = data_offset(file, extent.member, extent.offset, extent.nbytes)
        return self._begins[extent]
