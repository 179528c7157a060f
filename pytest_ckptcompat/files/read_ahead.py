"""Read ahead in remote files: fetch many small neighbouring parts with one request."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from .file import File

if TYPE_CHECKING:
    from collections.abc import Iterable

WINDOW = 8 << 20
"""The largest window in bytes. A larger part is read by itself."""

_GAP = 256 << 10
"""The largest gap in bytes inside a window. Fetching it is faster than another request."""

_MOST_HELD = 4
_MOST_ALONE = 2


class Window(NamedTuple):
    """Bytes of a file that are in memory, with their offset."""

    start: int
    data: bytes

    def part(self, offset: int, size: int) -> bytes | None:
        """Return `size` bytes from `offset`, or None if the window doesn't contain all of them."""
        begin = offset - self.start
        return self.data[begin : begin + size] if 0 <= begin <= len(self.data) - size else None


Held = dict[tuple[str, int], Window]
"""Windows of a checkpoint's files, by path and number. The most recently used one is the last."""


class ReadAhead(File):
    """A file that is read in windows: ranges in which the parts that will be read lie close together.

    Everything else is read directly. A window that was dropped before half of it was used is not fetched
    again: its parts are read directly too, because their order makes windows useless.

    Args:
        file: the open file, which stays open.
        parts: (first byte, byte after the last) of the parts that will be read. They may overlap.
        held: the windows in memory, of this file and others.
        sure: whether all parts will certainly be read. If not, a window is fetched only once a part is read
            right after its neighbour, or after three parts of the window were wanted in any order.
    """

    def __init__(
        self, file: File, parts: Iterable[tuple[int, int]], held: Held, *, sure: bool = True
    ) -> None:
        super().__init__(file.path, file.size)
        self.remote = file.remote
        self._file = file
        parts = sorted((start, min(end, file.size)) for start, end in parts)
        self._parts = [start for start, _ in parts]
        self._windows = _joined(parts)
        self._starts = [start for start, _ in self._windows]
        self._held = held
        self._sure = sure
        self._used: dict[int, int] = {}
        self._alone: dict[int, set[int]] = {}
        self._last_part = -1

    def _read_some(self, offset: int, view: memoryview) -> int:
        data = self._from_window(offset, len(view))
        if data is None:
            self._file.readinto_at(offset, view)
        else:
            view[:] = data
        self._last_part = bisect_right(self._parts, offset)
        return len(view)

    def _from_window(self, offset: int, size: int) -> bytes | None:
        """Return the bytes from a window, which is fetched if that is worth it; None: read them directly."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset + size > self._windows[number][1]:
            return None
        held = self._held.pop((self.path, number), None)
        data = None if held is None else held.part(offset, size)
        if data is None and (start := self._worth_fetching(number, offset, held)) is not None:
            end, rest = (self._windows[number][1], b"") if held is None else held
            if held is None:
                self._used[number] = 0
            held = Window(start, self._file.read_at(start, end - start) + rest)
            data = held.part(offset, size)
        if held is not None:
            if len(self._held) >= _MOST_HELD:
                del self._held[next(iter(self._held))]
            self._held[self.path, number] = held
        if data is not None:
            self._used[number] += size
        return data

    def _worth_fetching(self, number: int, offset: int, held: Window | None) -> int | None:
        """Return the offset from which to fetch a window now, or None to read only this part.

        If the end of the window is held, only what is before it is fetched.
        """
        start, end = self._windows[number]
        if held is None and 2 * self._used.get(number, end) < end - start:
            return None
        part = bisect_right(self._parts, offset)
        if self._sure:
            return start
        if part == self._last_part + 1:
            return offset
        alone = self._alone.setdefault(number, set())
        alone.add(part)
        return start if len(alone) > _MOST_ALONE else None


def _joined(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the largest possible windows over the sorted parts. Windows do not overlap."""
    windows: list[tuple[int, int]] = []
    for start, end in parts:
        if not 0 <= start < end or end - start > WINDOW:
            continue
        first, last = windows[-1] if windows else (0, -_GAP - 1)
        if start - last <= _GAP and end - first <= WINDOW:
            windows[-1] = first, max(last, end)
        elif end > last:
            windows.append((max(start, last), end))
    return windows
