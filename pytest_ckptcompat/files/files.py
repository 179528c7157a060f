"""The files of one checkpoint, opened safely and counted."""

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
    """A regular file of this machine."""

    def __init__(self, path: str, descriptor: int, fingerprint: Fingerprint) -> None:
        super().__init__(path, fingerprint.size)
        self.fingerprint: Hashable = fingerprint
        self._descriptor = descriptor

    def read_at(self, offset: int, size: int) -> bytes:
        """As any file, but a small read is one call of the system."""
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            data = b""  # and the careful way says why
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
        """Look at the open file again; errors as for any file."""
        if Fingerprint.of(os.fstat(self._descriptor)) != self.fingerprint:
            raise changed(self.path)

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Files:
    """Opens the files of one checkpoint, and refuses one that is not what it was.

    Attributes:
        bytes_read: from all of them, so far.
        failure: why values could not be read, the first time that happened; None where they could.
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
        """Bytes really read from the files so far."""
        open_now = [file for file in self._opened if not file.closed]
        self._read_before += sum(file.bytes_read for file in self._opened if file.closed)
        self._opened = open_now
        return self._read_before + sum(file.bytes_read for file in open_now)

    def open(self, path: str) -> File:
        """Open a file for reading. It is to be closed: it is a context manager.

        A remote file is opened once, and stays open.

        Raises:
            CheckpointError: there is none, it is a folder, a pipe or a device, it can't be read, or it is not
                the file that was opened under this path before.
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
        """Look again at the remote files, which stay open.

        Raises:
            CheckpointError: one has changed since it was opened.
        """
        for file in self._remote.values():
            file.check_unchanged()

    @contextmanager
    def progress(self, what: str, nbytes: int) -> Iterator[None]:
        """Show inside, where somebody watches, how much of so many bytes was read; see `Progress`."""
        whole = Progress(what, nbytes)
        self._show(whole)
        try:
            with whole:
                yield
        finally:
            self._show(None)

    def _show(self, progress: Progress | None) -> None:
        """Tell it of what is read from now on, also from remote files that are open."""
        self._progress = progress
        for file in self._remote.values():
            file.progress = progress


def _open_regular(path: str) -> tuple[int, Fingerprint]:
    """Open a regular file, without waiting for a pipe that was put in its place meanwhile."""
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
