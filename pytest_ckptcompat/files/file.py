"""A file with random access that notices changes."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError

from .paths import display

if TYPE_CHECKING:
    from types import TracebackType

    from .progress import Progress

_PIECE = 1 << 30


class Reads:
    """What was read from the files of one checkpoint.

    Attributes:
        nbytes: the number of bytes read so far from the disk or the network.
        progress: receives the size of every large read, or None.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.progress: Progress | None = None


class File(io.RawIOBase):
    """A seekable binary file, open for reading, as a context manager.

    Attributes:
        path: the path as it was given.
        size: the size in bytes when it was opened.
        remote: whether every read is a request to another machine, which takes long.
    """

    remote = False

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self._position = 0

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes, starting at `offset`.

        Raises:
            CheckpointError: the file ends too early or can't be read.
        """
        data = bytearray(size)
        self.readinto_at(offset, data)
        return bytes(data)

    def readinto_at(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer with the bytes that start at `offset`; errors as in `read_at`."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            count = self._read_some(offset + done, view[done : done + _PIECE])
            if count == 0:
                raise CheckpointError(
                    f"{display(self.path)} ends at byte {offset + done}, before byte {offset + len(view)}: "
                    "it is truncated, or was cut while it was read"
                )
            done += count

    def _read_some(self, offset: int, view: memoryview) -> int:
        """Read at least one byte, and return how many were read; 0 at the end of the file."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Check that the file is unchanged.

        Raises:
            CheckpointError: the file changed since it was opened.
        """
        raise NotImplementedError

    # -- the rest of the interface of a binary file, for formats of other packages -------------------------

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        """Read at the current position into a buffer."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self.size - self._position)]
        self.readinto_at(self._position, view)
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the current position and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError("a negative position")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file. If it changed meanwhile, raise that instead of an error about damage in it."""
        try:
            if kind is None or issubclass(kind, CheckpointError):
                self.check_unchanged()
        finally:
            self.close()


class Part(File):
    """A range of a file, read as if it were a file of its own."""

    def __init__(self, file: File, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > file.size:
            raise CheckpointError(
                f"{display(file.path)} is truncated: it should have {offset + size} bytes or more"
            )
        super().__init__(file.path, size)
        self.remote = file.remote
        self._file = file
        self._offset = offset

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes, starting at `offset`."""
        if offset + size > self.size:
            return super().read_at(offset, size)  # raises
        return self._file.read_at(self._offset + offset, size)

    def _read_some(self, offset: int, view: memoryview) -> int:
        view = view[: max(0, self.size - offset)]
        self._file.readinto_at(self._offset + offset, view)
        return len(view)


class Bytes(File):
    """Bytes in memory, read as if they were a file."""

    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(path, len(data))
        self._data = data

    def _read_some(self, offset: int, view: memoryview) -> int:
        data = self._data[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)


_AHEAD = 256 << 10


class Ahead:
    """A file from which small parts that lie close together are read with one read."""

    def __init__(self, file: File, window: int = _AHEAD) -> None:
        self.path = file.path
        self.size = file.size
        self._file = file
        self._window = window
        self._begin = 0
        self._data = b""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; see `File`."""
        start = offset - self._begin
        if start < 0 or start + size > len(self._data):
            length = max(size, min(self._window, self.size - offset))
            self._begin, self._data = offset, self._file.read_at(offset, length)
            start = 0
        return self._data[start : start + size]


def changed(path: str) -> CheckpointError:
    """Return the error for a file that changed since its header was read."""
    return CheckpointError(
        f"{display(path)} changed during this run: it is not the file whose header was read. Run the "
        "check again once it is written; writers should write a new file and rename it"
    )
