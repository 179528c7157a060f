"""Read ranges of a checkpoint's storages, without torch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.tensor_spec import Chunk, Member, PlainChunk, TensorSpec, contiguous_stride
from pytest_ckptcompat.files.file import Part
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.files.read_ahead import Held, ReadAhead
from pytest_ckptcompat.formats.torch_zip import read_archive
from pytest_ckptcompat.formats.zip_members import data_offset, inflate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_ckptcompat.core.tensor_spec import Extent
    from pytest_ckptcompat.files.file import File

    from .contents import Contents

    Source = Callable[[int, memoryview], None]
    """Fills a buffer with the bytes of one storage, starting at byte `start`."""


_LOCAL_HEADER = 512
"""The most bytes before a zip member's values, without its name: local header and padding."""


class Storages(ExitStack):
    """The storages of one checkpoint, open for reading. A context manager.

    Args:
        contents: the checkpoint.
        expected: the storages that will be read, so that one request can fetch many from a remote file.
        sure: whether all of them will certainly be read; see `ReadAhead`.
    """

    def __init__(self, contents: Contents, expected: Iterable[str] = (), *, sure: bool = True) -> None:
        super().__init__()
        self._contents = contents
        self._open: dict[str, File] = {}
        self._held: Held = {}
        self._sure = sure
        self._expected: dict[str, list[tuple[int, int]]] = {}
        for extent in (extent for name in expected for extent in contents.header.storages.get(name, ())):
            header = _LOCAL_HEADER + len(extent.name.encode()) if isinstance(extent, Member) else 0
            part = extent.offset, extent.offset + header + extent.nbytes
            self._expected.setdefault(extent.file, []).append(part)

    def in_chunks(self, storage: str) -> bool:
        """Return whether a storage is one tensor stored in blocks."""
        return isinstance(self._extents(storage)[0], Chunk)

    def source(self, storage: str) -> Source:
        """Return a function that reads a storage which is not stored in blocks."""
        (extent,) = self._extents(storage)
        return _source(self._file(extent.file), extent)

    def blocks(self, spec: TensorSpec) -> Iterator[tuple[tuple[slice, ...], Source, TensorSpec]]:
        """Yield the parts in which a tensor is stored, often one.

        Each is given by its place in the tensor, a function that reads it, and its layout.
        """
        if not self.in_chunks(spec.storage):
            yield (), self.source(spec.storage), spec
            return
        for chunk in self._extents(spec.storage):
            assert isinstance(chunk, Chunk)
            places = zip(chunk.begin, chunk.size, strict=True)
            block = tuple(slice(begin, begin + size) for begin, size in places)
            yield (block, *self._opened(chunk, spec.dtype))

    def _opened(self, chunk: Chunk, dtype: str) -> tuple[Source, TensorSpec]:
        if isinstance(chunk, PlainChunk):
            block = TensorSpec(dtype, chunk.size, contiguous_stride(chunk.size))
            return _source(self._file(chunk.file), chunk), block
        part = Part(self._file(chunk.file), chunk.offset, chunk.nbytes)
        where = f"{display(chunk.file)}, at byte {chunk.offset}"
        try:
            header = read_archive(part, self._contents.limits)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        spec = header and header.tree
        if not header or not isinstance(spec, TensorSpec) or (spec.dtype, spec.shape) != (dtype, chunk.size):
            raise CheckpointError(f"{where}: a block of a tensor is not what the index says")
        return _source(part, header.storages[spec.storage][0]), spec

    def _extents(self, storage: str) -> tuple[Extent, ...]:
        found = self._contents.header.storages.get(storage, ())
        if not found:
            name = display(self._contents.path)
            raise CheckpointError(
                f"{name} holds no values that could be read ({self._contents.header.format})"
            )
        return found

    def _file(self, path: str) -> File:
        if path not in self._open:
            file = self.enter_context(self._contents.files.open(path))
            parts = self._expected.get(path) if file.remote else None
            self._open[path] = ReadAhead(file, parts, self._held, sure=self._sure) if parts else file
        return self._open[path]


def _source(file: File, extent: Extent) -> Source:
    begin, packed = extent.offset, None
    if isinstance(extent, Member):
        packed = extent.packed
        begin = data_offset(file, extent.name, extent.offset, extent.nbytes, packed)

    def read(start: int, into: memoryview) -> None:
        if start + into.nbytes > extent.nbytes:
            raise CheckpointError(f"{display(file.path)}: a tensor reaches beyond its storage")
        if packed is None:
            file.readinto_at(begin + start, into)
        else:
            inflate(file, begin, packed, into, start)

    return read
