"""Open the files of one checkpoint safely and count the bytes read."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.redaction import is_url

from .file import File, Reads, changed
from .folders import kind_of
from .paths import display, unreachable
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .remote import RemoteFile


class LocalFile(File):
    """A regular file on this machine.

    Attributes:
        fingerprint: the part of the file's status that shows whether the file has changed.
    """

    def __init__(self, path: str, descriptor: int, status: os.stat_result, reads: Reads) -> None:
        super().__init__(path, status.st_size)
        self.fingerprint = _fingerprint(status)
        self._descriptor = descriptor
        self._reads = reads

    def read_at(self, offset: int, size: int) -> bytes:
        """Read with one system call where possible; otherwise as for any file."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            data = b""  # super().read_at says why
        if len(data) < size:
            return super().read_at(offset, size)
        self._reads.nbytes += size
        return data

    def _read_some(self, offset: int, view: memoryview) -> int:
        try:
            count = os.preadv(self._descriptor, [view], offset)
        except OSError as error:
            raise CheckpointError(f"can't read {display(self.path)}: {error.strerror or error}") from None
        self._reads.nbytes += count
        if self._reads.progress is not None:
            self._reads.progress.advance(count)
        return count

    def check_unchanged(self) -> None:
        """Check that the open file is unchanged; errors as for any file."""
        if _fingerprint(os.fstat(self._descriptor)) != self.fingerprint:
            raise changed(self.path)

    def close(self) -> None:
        """Close the file. Closing it twice is fine."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Files:
    """The files of one checkpoint. A file that has changed is refused.

    Attributes:
        failure: why values could not be read (the first error), or None.
    """

    failure: CheckpointError | None = None

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, ...]] = {}
        self._remote: dict[str, RemoteFile] = {}
        self._reads = Reads()

    @property
    def bytes_read(self) -> int:
        """The number of bytes read from all files so far."""
        return self._reads.nbytes

    def open(self, path: str) -> File:
        """Open a file for reading, as a context manager that closes it.

        A remote file is opened once and stays open.

        Raises:
            CheckpointError: the file does not exist, is a folder, a pipe or a device, can't be read, or has
                changed since it was opened under this path before.
        """
        if is_url(path):
            from .remote import RemoteFile

            if path not in self._remote or self._remote[path].closed:
                self._remote[path] = RemoteFile(path, self._reads)
            return self._remote[path]
        file = LocalFile(path, *_open_regular(path), self._reads)
        if self._seen.setdefault(path, file.fingerprint) != file.fingerprint:
            file.close()
            raise changed(path)
        return file

    def check_unchanged(self) -> None:
        """Check that the remote files, which stay open, are unchanged; errors as for any file."""
        for file in self._remote.values():
            file.check_unchanged()

    @contextmanager
    def progress(self, what: str, nbytes: int) -> Iterator[None]:
        """Show how many of `nbytes` bytes have been read inside the block; see `Progress`."""
        self._reads.progress = Progress(what, nbytes)
        try:
            with self._reads.progress:
                yield
        finally:
            self._reads.progress = None


def _fingerprint(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file, and return its descriptor and status. A pipe that replaced it does not block."""
    if kind_of(path) == "folder":
        raise CheckpointError(f"{display(path)} is a folder, not a file")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise unreachable(path, error) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(
            f"{display(path)} is not a regular file any more: it was replaced while it was opened"
        )
    return descriptor, status
