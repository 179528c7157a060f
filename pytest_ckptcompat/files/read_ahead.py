"""A remote file of which many small parts are going to be read: neighbours are fetched with one request."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING

from .file import Part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .file import File

WINDOW = 8 << 20
"""Bytes of a window, at most; a part that is larger is read by itself."""

_GAP = 256 << 10
"""Bytes between two parts that are fetched with them: a request takes longer."""

_MOST_HELD = 4


class Held:
    """The windows of all files of a checkpoint that are in memory: the last few."""

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, path: str, start: int) -> bytes | None:
        """The window of a file that begins there; None if it is not in memory."""
        if (path, start) in self._windows:
            self._windows.move_to_end((path, start))
        return self._windows.get((path, start))

    def put(self, path: str, start: int, data: bytes) -> None:
        """Keep a window instead of the one that was used longest ago."""
        if len(self._windows) >= _MOST_HELD:
            self._windows.popitem(last=False)
        self._windows[path, start] = data


class ReadAhead(Part):
    """Reads a file in windows: stretches of it in which the parts that will be read lie close together.

    Everything else is read as if there were no windows. So is a window that had to be given up before half of
    it was used: the parts are read in an order that windows are no help for.

    Args:
        file: open, and stays so.
        parts: (first byte, byte after the last) of what is going to be read; they may overlap.
        held: the windows in memory, of this file and others.
    """

    def __init__(self, file: File, parts: Iterable[tuple[int, int]], held: Held) -> None:
        super().__init__(file, 0, file.size)
        self._windows = _joined(parts, file.size)
        self._starts = [start for start, _ in self._windows]
        self._held = held
        self._used: dict[int, int] = {}

    def read_at(self, offset: int, size: int) -> bytes:
        """As for `File`."""
        data = bytearray(size)
        self.readinto_at(offset, data)
        return bytes(data)

    def readinto_at(self, offset: int, buffer: bytearray | memoryview) -> None:
        """As for `File`."""
        view = memoryview(buffer).cast("B")
        number = bisect_right(self._starts, offset) - 1
        start, end = self._windows[number] if number >= 0 else (0, 0)
        window = self._window(number) if offset + len(view) <= end and number >= 0 else None
        if window is None:
            self._file.readinto_at(offset, view)
        else:
            view[:] = window[offset - start : offset - start + len(view)]
            self._used[start] += len(view)

    def _window(self, number: int) -> bytes | None:
        """The bytes of a window; None where it is no longer held and was of little use."""
        start, end = self._windows[number]
        window = self._held.get(self.path, start)
        if window is None and 2 * self._used.get(start, end) >= end - start:
            window = self._file.read_at(start, end - start)
            self._held.put(self.path, start, window)
            self._used[start] = 0
        return window


def _joined(parts: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The windows over the parts, in order: as large as can be, none of them over another."""
    windows: list[tuple[int, int]] = []
    for start, end in sorted((start, min(end, size)) for start, end in parts):
        if not 0 <= start < end or end - start > WINDOW:
            continue
        first, last = windows[-1] if windows else (0, -_GAP - 1)
        if start - last <= _GAP and end - first <= WINDOW:
            windows[-1] = first, max(last, end)
        elif end > last:
            windows.append((max(start, last), end))
    return windows
