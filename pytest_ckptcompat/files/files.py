"""Open the files of one checkpoint safely and count the bytes read."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.redaction import is_url
from pytest_ckptcompat.files.file import File, Fingerprint, changed

from .folders import kind_of
from .paths import display, unreachable
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from .remote import RemoteFile


class LocalFile(File):
    """A regular file on this machine."""

    def __init__(self, path: str, descriptor: int, fingerprint: Fingerprint) -> None:
        super().__init__(path, fingerprint.size)
        self.fingerprint: Hashable = fingerprint
        self._descriptor = descriptor

    def read_at(self, offset: int, size: int) -> bytes:
        """Read with one system call where possible; otherwise as for any file."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            data = b""  # super().read_at says why
        if len(data) < size:
            return super().read_at(offset, size)
        self.bytes_read += size
        return data

    def _read_some(self, offset: int, view: memoryview) -> int:
        try:
            count = os.preadv(self._descriptor, [view], offset)
        except OSError as error:
            raise CheckpointError(f"can't read {display(self.path)}: {error.strerror or error}") from None
        self.bytes_read += count
        if self.progress is not None:
            self.progress.advance(count)
        return count

    def check_unchanged(self) -> None:
        """Check that the open file is unchanged; errors as for any file."""
        if Fingerprint.of(os.fstat(self._descriptor)) != self.fingerprint:
            raise changed(self.path)

    def close(self) -> None:
        """Close the file. Closing it twice is fine."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Files:
    """The files of one checkpoint. A file that has changed is refused.

    Attributes:
        bytes_read: the number of bytes read so far from all files.
        failure: why values could not be read (the first error), or None.
    """

    failure: CheckpointError | None = None

    def __init__(self) -> None:
        self._seen: dict[str, Hashable] = {}
        self._opened: list[File] = []
        self._read_before = 0
        self._remote: dict[str, RemoteFile] = {}
        self._progress: Progress | None = None

    @property
    def bytes_read(self) -> int:
        """The number of bytes read from all files so far."""
        open_now = [file for file in self._opened if not file.closed]
        self._read_before += sum(file.bytes_read for file in self._opened if file.closed)
        self._opened = open_now
        return self._read_before + sum(file.bytes_read for file in open_now)

    def open(self, path: str) -> File:
        """Open a file for reading, as a context manager that closes it.

        A remote file is opened once and stays open.

        Raises:
            CheckpointError: the file does not exist, is a folder, a pipe or a device, can't be read, or has
                changed since it was opened under this path before.
        """
        if is_url(path):
            return self._open_remote(path)
        file = LocalFile(path, *_open_regular(path))
        if self._seen.setdefault(path, file.fingerprint) != file.fingerprint:
            file.close()
            raise changed(path)
        file.progress = self._progress
        self._opened.append(file)
        return file

    def _open_remote(self, path: str) -> RemoteFile:
        if path not in self._remote or self._remote[path].closed:
            from .remote import RemoteFile

            self._remote[path] = file = RemoteFile(path)
            file.progress = self._progress
            self._opened.append(file)
        return self._remote[path]

    def check_unchanged(self) -> None:
        """Check the remote files, which stay open.

        Raises:
            CheckpointError: a file changed since it was opened.
        """
        for file in self._remote.values():
            file.check_unchanged()

    @contextmanager
    def progress(self, what: str, nbytes: int) -> Iterator[None]:
        """Show how many of `nbytes` bytes have been read inside the block; see `Progress`."""
        whole = Progress(what, nbytes)
        self._show(whole)
        try:
            with whole:
                yield
        finally:
            self._show(None)

    def _show(self, progress: Progress | None) -> None:
        """Report further reads to `progress`, also those from open remote files."""
        self._progress = progress
        for file in self._remote.values():
            file.progress = progress


def _open_regular(path: str) -> tuple[int, Fingerprint]:
    """Open a regular file. Don't block if it was replaced by a pipe meanwhile."""
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
    return descriptor, Fingerprint.of(status)
