"""The files of one checkpoint, opened safely and counted."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.files.file import File, Fingerprint, changed

from .folders import kind_of
from .paths import display, is_url, unreachable

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .progress import Progress


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
        progress: of reading them all, for those that are opened from now on.
    """

    progress: Progress | None = None

    def __init__(self) -> None:
        self._seen: dict[str, Hashable] = {}
        self._opened: list[File] = []
        self._read_before = 0
        self._progress: dict[str, Progress] = {}

    @property
    def bytes_read(self) -> int:
        """Bytes really read from the files so far."""
        open_now = [file for file in self._opened if not file.closed]
        self._read_before += sum(file.bytes_read for file in self._opened if file.closed)
        self._opened = open_now
        return self._read_before + sum(file.bytes_read for file in open_now)

    def open(self, path: str) -> File:
        """Open a file for reading. It is to be closed: it is a context manager.

        Raises:
            CheckpointError: there is none, it is a folder, a pipe or a device, it can't be read, or it is not
                the file that was opened under this path before.
        """
        if is_url(path):
            from .remote import RemoteFile

            file: LocalFile | RemoteFile = RemoteFile(path, self._progress)
        else:
            file = LocalFile(path, *_open_regular(path))
        if self._seen.setdefault(path, file.fingerprint) != file.fingerprint:
            file.close()
            raise changed(path)
        file.progress = self.progress or file.progress
        self._opened.append(file)
        return file


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
            f"{display(path)} is no regular file any more: it was replaced while it was opened"
        )
    return descriptor, Fingerprint.of(status)
