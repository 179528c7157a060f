"""Files behind URLs, read by ranges through fsspec: of 100 GB, the header alone is fetched."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest

from . import web
from .file import File, changed
from .paths import about, display
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BLOCK = 32 << 10
"""Small reads fetch whole blocks of so many bytes, so that a header takes a few requests."""

_BLOCKS = 64
_PIECE = 8 << 20
_MOST_NAMES = 100_000
_VERSIONS = frozenset({
    "etag", "last-modified", "lastmodified", "last_modified", "mtime", "modified", "updated", "created",
    "content-md5", "digest", "md5hash", "sha256", "checksum", "generation", "versionid", "version_id",
    "blob_id",
})  # fmt: skip
"""What file systems call what differs between two versions of a file."""


class Status(NamedTuple):
    """What a file system says of a file: enough to know it again."""

    size: int
    version: tuple[tuple[str, str], ...]


class RemoteFile(File):
    """A file behind a URL. Its last small reads are kept, since the parts of a header lie close together."""

    remote = True
    _raw: Any = None

    def __init__(self, url: str, progress: dict[str, Progress]) -> None:
        self._blocks: dict[int, bytes] = {}
        with _told(url):
            self._system, self._name = _found(url)
            self.fingerprint = self._status(url)
            self._raw = self._system.open(self._name, "rb", cache_type="none")
        super().__init__(url, self.fingerprint.size)
        self.progress: Progress = progress.setdefault(url, Progress(display(url), self.size))

    def check_unchanged(self) -> None:
        """Ask for the file's size and version again; errors as for any file."""
        with _told(self.path):
            status = self._status(self.path)
        if status != self.fingerprint:
            raise changed(self.path)

    def close(self) -> None:
        """Close it; closing twice is fine, and so is closing one that could not be opened, as Python does."""
        if self._raw is not None:
            self._raw.close()
            self._blocks.clear()
        super().close()

    def _read_some(self, offset: int, view: memoryview) -> int:
        if offset >= self.size:
            return 0
        if len(view) <= BLOCK:
            number, start = divmod(offset, BLOCK)
            data = self._block(number)[start : start + len(view)]
            view[: len(data)] = data
            return len(data)
        wanted = min(len(view), self.size - offset)
        with self.progress as progress:
            for start in range(0, wanted, _PIECE):
                data = self._fetch(offset + start, min(_PIECE, wanted - start))
                view[start : start + len(data)] = data
                progress.advance(len(data))
        return wanted

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) >= _BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = self._fetch(number * BLOCK, min(BLOCK, self.size - number * BLOCK))
        return self._blocks[number]

    def _fetch(self, offset: int, size: int) -> bytes:
        """One range."""
        with _told(self.path):
            self._raw.seek(offset)
            data: bytes = self._raw.read(size)
        self.bytes_read += len(data)
        if len(data) != size:
            raise CheckpointError(
                f"{display(self.path)} gave {len(data)} bytes where {size} were asked for: it is shorter "
                "than its server says, or being written; try again, or download it first"
            )
        return data

    def _status(self, url: str) -> Status:
        self._system.invalidate_cache()
        info: Mapping[str, Any] = self._system.info(self._name)
        size = info.get("size")
        if info.get("type") == "directory":
            raise CheckpointError(f"{display(url)} is a folder, not a file")
        if not isinstance(size, int):
            raise CheckpointError(
                f"{display(url)}: the server does not say how large it is: download it first"
            )
        return Status(size, tuple((key, str(info[key])) for key in sorted(info) if key.lower() in _VERSIONS))


def kind_of_url(url: str) -> str:
    """``"file"`` or ``"folder"``.

    Raises:
        CheckpointError: there is nothing, or it can't be looked at.
    """
    if url.endswith("/"):
        return "folder"
    if url.startswith(("http://", "https://")):
        return "file"  # asking would mean to fetch and read the page
    with _told(url):
        system, name = _found(url)
        return "folder" if system.info(name).get("type") == "directory" else "file"


def names_behind(url: str) -> list[str]:
    """The names of what is in a folder behind a URL.

    Raises:
        CheckpointError: it can't be listed.
    """
    with _told(url):
        system, name = _found(url)
        listed = system.ls(name, detail=False)[:_MOST_NAMES]
    return [str(each).rstrip("/").rpartition("/")[2] for each in listed]


def _found(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    system, name = url_to_fs(url, **web.options(url))
    return system, name


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into the one error there is."""
    shown = display(url)
    try:
        yield
    except CheckpointError as error:
        raise about(url, error) from None
    except ImportError as error:
        raise CheckpointError(f"{shown}: reading it needs {_package(error)}") from None
    except Exception as error:
        raise CheckpointError(f"{shown}{_reason(url, error)}") from None


def _reason(url: str, error: Exception) -> str:
    """The end of a sentence about a URL that can't be read."""
    if web.is_web(url):
        return f" {web.reason(error.__cause__ or error)}"
    if isinstance(error, FileNotFoundError):
        return " does not exist"
    if isinstance(error, PermissionError):
        return ": no permission to read it; are you logged in?"
    return _unknown_protocol(url) or f" can't be read: {type(error).__name__}: {escape(str(error))}"


def _package(error: ImportError) -> str:
    """What is not installed: fsspec says what for, the error behind it which module."""
    missing = error.name or getattr(error.__cause__, "name", None)
    if missing is None:
        return escape(str(error))
    return f"a package that is not installed: pip install {escape(missing.partition('.')[0])}"


def _unknown_protocol(url: str) -> str:
    """The end of a sentence about a URL with a protocol that nobody knows, or ``""``."""
    from fsspec import available_protocols  # type: ignore[import-untyped]

    known = available_protocols()
    for link in url.split("::"):
        protocol = link.partition("://")[0]
        if "://" in link and protocol not in known:
            near = nearest(protocol, known, 1)
            hint = f"did you mean {near[0]}://?" if near else "install the package that brings it to fsspec"
            return f": the protocol {escape(protocol)}:// is not known: {hint}"
    return ""
