"""A remote file of which many small parts are going to be read: neighbours are fetched with one request."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from .file import Part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .file import File

WINDOW = 8 << 20
"""Bytes of a window, at most; a part that is larger is read by itself."""

_GAP = 256 << 10
"""Bytes between two parts that are fetched with them: a request takes longer."""

_MOST_HELD = 4
_MOST_ALONE = 2


class Window(NamedTuple):
    """Bytes of a file that are in memory, and where they begin."""

    start: int
    data: bytes

    def part(self, offset: int, size: int) -> bytes | None:
        """The bytes from `offset` on; None where they are not all there."""
        begin = offset - self.start
        return self.data[begin : begin + size] if 0 <= begin <= len(self.data) - size else None


class Held:
    """The windows of all files of a checkpoint that are in memory: the last few."""

    def __init__(self) -> None:
        self._windows: OrderedDict[tuple[str, int], Window] = OrderedDict()

    def get(self, path: str, number: int) -> Window | None:
        """A window of a file; None if it is not in memory."""
        if (path, number) in self._windows:
            self._windows.move_to_end((path, number))
        return self._windows.get((path, number))

    def put(self, path: str, number: int, window: Window) -> None:
        """Keep a window instead of the one that was used longest ago."""
        self._windows.pop((path, number), None)
        if len(self._windows) >= _MOST_HELD:
            self._windows.popitem(last=False)
        self._windows[path, number] = window


class ReadAhead(Part):
    """Reads a file in windows: stretches of it in which the parts that will be read lie close together.

    Everything else is read as if there were no windows. So is a window that had to be given up before half of
    it was used: the parts are read in an order that windows don't help with.

    Args:
        file: open, and stays so.
        parts: (first byte, byte after the last) of what is going to be read; they may overlap.
        held: the windows in memory, of this file and others.
        sure: all of the parts will be read. Otherwise that is believed once one is read after its neighbour,
            or three of the same window in any order.
    """

    def __init__(
        self, file: File, parts: Iterable[tuple[int, int]], held: Held, *, sure: bool = True
    ) -> None:
        super().__init__(file, 0, file.size)
        parts = sorted((start, min(end, file.size)) for start, end in parts)
        self._parts = [start for start, _ in parts]
        self._windows = _joined(parts)
        self._starts = [start for start, _ in self._windows]
        self._held = held
        self._sure = sure
        self._used: dict[int, int] = {}
        self._alone: dict[int, set[int]] = {}
        self._last_part = -1

    def read_at(self, offset: int, size: int) -> bytes:
        """As for `File`."""
        data = bytearray(size)
        self.readinto_at(offset, data)
        return bytes(data)

    def readinto_at(self, offset: int, buffer: bytearray | memoryview) -> None:
        """As for `File`."""
        view = memoryview(buffer).cast("B")
        data = self._from_window(offset, len(view))
        if data is None:
            self._file.readinto_at(offset, view)
        else:
            view[:] = data
        self._last_part = bisect_right(self._parts, offset)

    def _from_window(self, offset: int, size: int) -> bytes | None:
        """The bytes, if they are in a window and it is a help; it is fetched if it is not in memory."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset + size > self._windows[number][1]:
            return None
        held = self._held.get(self.path, number)
        data = None if held is None else held.part(offset, size)
        if data is None and (start := self._worth_fetching(number, offset)) is not None:
            held = Window(start, self._file.read_at(start, self._windows[number][1] - start))
            self._held.put(self.path, number, held)
            self._used[number] = 0
            data = held.part(offset, size)
        if data is not None:
            self._used[number] += size
        return data

    def _worth_fetching(self, number: int, offset: int) -> int | None:
        """Where to begin if a window is fetched now; None if this part alone is to be read."""
        start, end = self._windows[number]
        if 2 * self._used.get(number, end) < end - start:
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
    """The windows over the parts, which are sorted: as large as can be, none of them over another."""
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
