"""Files behind URLs, read by ranges through fsspec: only the header of a 100 GB file is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError

from .attempts import asked, file_system
from .file import File, changed
from .paths import display
from .progress import Progress
from .web import WebRanges

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from .file import Reads

BLOCK = 32 << 10
"""Small reads fetch whole blocks of this many bytes, so that a header takes few requests."""

_BLOCKS = 64
_PIECE = 8 << 20
_VERSIONS = frozenset({
    "etag", "last-modified", "lastmodified", "last_modified", "mtime", "modified", "updated", "created",
    "content-md5", "digest", "md5hash", "sha256", "checksum", "generation", "versionid", "version_id",
    "blob_id",
})  # fmt: skip
"""Names under which file systems report what differs between two versions of a file."""


class RemoteFile(File):
    """A file behind a URL. Opening it takes requests, so it stays open after its ``with`` block.

    The last small reads are kept in memory, because the parts of a header lie close together.
    """

    remote = True
    _ranges: WebRanges | _StoreRanges | None = None

    def __init__(self, url: str, reads: Reads) -> None:
        self._reads = reads
        self._blocks: dict[int, bytes] = {}
        self._gave_up = False
        self._was_read = True
        super().__init__(url, 0)
        system, name = file_system(url)
        if type(system).__name__ == "HTTPFileSystem":
            self._ranges = WebRanges(system, url)
            self._blocks[0] = self._fetched(0, BLOCK)
        else:
            self._ranges = asked(url, lambda: _StoreRanges(system, name, url))
        self.size = self._ranges.size
        self._own_progress = Progress(display(url), self.size)

    def check_unchanged(self) -> None:
        """Ask for size and version again if something was read since; errors as for any file."""
        if self._ranges is not None and self._was_read and not self._gave_up:
            self._was_read = False
            asked(self.path, self._ranges.check_unchanged)

    def close(self) -> None:
        """Close the file. Python also calls this for a file that could not be opened."""
        if self._ranges is not None:
            self._ranges.close()
            self._blocks.clear()
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Check that the file is unchanged. It stays open."""
        if kind is None or issubclass(kind, CheckpointError):
            self.check_unchanged()

    def _read_some(self, offset: int, view: memoryview) -> int:
        if offset >= self.size:
            return 0
        self._was_read = True
        if len(view) <= BLOCK:
            number, start = divmod(offset, BLOCK)
            data = self._block(number)[start : start + len(view)]
            view[: len(data)] = data
            return len(data)
        wanted = min(len(view), self.size - offset)
        with self._reads.progress or self._own_progress as progress:
            for start in range(0, wanted, _PIECE):
                data = self._whole(offset + start, min(_PIECE, wanted - start))
                view[start : start + len(data)] = data
                progress.advance(len(data))
        return wanted

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) >= _BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[number] = self._whole(number * BLOCK, min(BLOCK, self.size - number * BLOCK))
        return self._blocks[number]

    def _whole(self, offset: int, size: int) -> bytes:
        data = self._fetched(offset, size)
        if len(data) != size:
            raise CheckpointError(
                f"{display(self.path)} gave {len(data)} bytes instead of {size}: it is shorter than its "
                "server says, or is being written; try again, or download it first"
            )
        return data

    def _fetched(self, offset: int, size: int) -> bytes:
        """Fetch one range. After a failure, further ranges are tried only once."""
        ranges = self._ranges
        assert ranges is not None
        patient, self._gave_up = not self._gave_up, True
        data = asked(self.path, lambda: ranges.fetch(offset, size), patient=patient)
        self._gave_up = False
        self._reads.nbytes += len(data)
        return data


class _StoreRanges:
    """Ranges of one file in any file system that fsspec knows."""

    def __init__(self, system: Any, name: str, url: str) -> None:
        self._system = system
        self._name = name
        self._url = url
        self._status = self._looked_up()
        self.size = self._status[0]
        self._file = system.open(name, "rb", cache_type="none")

    def fetch(self, offset: int, size: int) -> bytes:
        """Return the bytes of one range."""
        self._file.seek(offset)
        data: bytes = self._file.read(size)
        return data

    def check_unchanged(self) -> None:
        """Ask for size and version again, and raise if they changed."""
        if self._looked_up() != self._status:
            raise changed(self._url)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _looked_up(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """Return the size and what tells one version of the file from another."""
        self._system.invalidate_cache()
        info: Mapping[str, Any] = self._system.info(self._name)
        size = info.get("size")
        if info.get("type") == "directory":
            raise CheckpointError("it is a folder, not a file")
        if not isinstance(size, int):
            raise CheckpointError("the server does not say how large it is: download it first")
        return size, tuple((key, str(info[key])) for key in sorted(info) if key.lower() in _VERSIONS)
