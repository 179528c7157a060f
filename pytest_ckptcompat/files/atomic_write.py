"""Write files completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pytest_ckptcompat.core.redaction import is_meant_as_url

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` in one step when the body has finished.

    The file is written beside `path` under a temporary name and flushed to the disk first. If the body
    raises, nothing is left and an old file at `path` is unchanged. Symbolic links are followed. Missing
    folders are made.

    Raises:
        OSError: a folder can't be made or written, the disk is full, or `path` is a URL.
    """
    if is_meant_as_url(os.fspath(path)):
        raise OSError(errno.EINVAL, "it is a URL, and files are written on this machine alone")
    place = Path(os.path.realpath(path))
    made = [folder for folder in place.parents if not folder.exists()]
    if made:
        made[0].mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name[:40]}.{secrets.token_hex(6)}.tmp")
    mode = place.stat().st_mode & 0o777 if place.exists() else 0o666  # less what the umask takes
    try:
        with os.fdopen(os.open(temporary, _NEW, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        with contextlib.suppress(OSError):  # a folder that another writer uses meanwhile stays
            for folder in made:
                folder.rmdir()
        raise
    _flush_folder(place.parent)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def _flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a new name in it survives a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
