"""Files behind URLs, read by ranges through fsspec: of 100 GB, the header alone is fetched."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ckptcompat.errors import CheckpointError
from pytest_ckptcompat.keys import escape

from .files import File, changed, display
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

    def __init__(self, url: str) -> None:
        with _told(url):
            self._system, self._name = _found(url)
            self.fingerprint = self._status(url)
            self._raw: Any = self._system.open(self._name, "rb", cache_type="none")
        super().__init__(url, self.fingerprint.size)
        self._blocks: dict[int, bytes] = {}

    def check_unchanged(self) -> None:
        """Ask for the file's size and version again; errors as for any file."""
        with _told(self.path):
            status = self._status(self.path)
        if status != self.fingerprint:
            raise changed(self.path)

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if not self.closed:
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
        with Progress(display(self.path), wanted) as progress:
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
            raise CheckpointError(f"{display(self.path)} gave {len(data)} bytes where {size} were asked for")
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

    system, name = url_to_fs(url)
    return system, name


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into the one error there is."""
    shown = display(url)
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{shown} does not exist, or can't be reached") from None
    except PermissionError:
        raise CheckpointError(f"{shown}: no permission to read it; are you logged in?") from None
    except ImportError as error:
        raise CheckpointError(f"{shown}: reading it needs a package: {escape(str(error))}") from None
    except Exception as error:
        text = str(error)
        if "range" in text.lower() or "seek" in text.lower():
            raise CheckpointError(
                f"{shown}: the server does not send parts of a file (range requests), and all of it is not "
                "downloaded for its header: download it first"
            ) from None
        raise CheckpointError(f"{shown} can't be read: {type(error).__name__}: {escape(text)}") from None
