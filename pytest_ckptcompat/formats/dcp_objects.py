"""The plain values of a distributed checkpoint: options of an optimizer, counters, extra state.

Each value is a torch.save archive of about a kilobyte, and the archives lie side by side. Neighbours are read
together, and archives with the same bytes are parsed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.files.file import Bytes

from .pickle_stubs import Global, Stub
from .torch_zip import read_archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.files import Files

    from .dcp_places import Place

UNREAD = "an object that was not read"

_GAP, _SPAN = 1 << 16, 1 << 22
_MOST, _MOST_REMOTE = 64 << 20, 16 << 20
"""How many bytes of objects are read, the smallest first. The others stay stubs."""


def read_objects(places: Mapping[str, Place], files: Files, limits: Limits) -> dict[str, object]:
    """Return the values of objects by key. An object that holds a tensor or is not read stays a `Stub`.

    Raises:
        CheckpointError: an object is damaged.
    """
    values: dict[str, object] = {key: Stub(Global(UNREAD)) for key in places}
    parsed: dict[bytes, object] = {}
    for path, begin, end, keys in _spans(_affordable(places, files)):
        with files.open(path) as file:
            data = file.read_at(begin, end - begin)
        for key in keys:
            _, offset, length = places[key]
            archive = data[offset - begin : offset - begin + length]
            if archive in parsed:
                values[key] = parsed[archive]
                continue
            header = read_archive(Bytes(path, archive), limits)
            if header is not None and not header.storages:
                values[key] = header.tree
                if isinstance(header.tree, (str, int, float, type(None))):  # mutable values are not shared
                    parsed[archive] = header.tree
    return values


def _affordable(places: Mapping[str, Place], files: Files) -> dict[str, Place]:
    first = next(iter(places.values()), None)
    if first is None:
        return {}
    with files.open(first[0]) as file:
        left = _MOST_REMOTE if file.remote else _MOST
    taken: dict[str, Place] = {}
    for key, place in sorted(places.items(), key=lambda item: item[1][2]):
        left -= place[2]
        if left < 0:
            break
        taken[key] = place
    return taken


def _spans(places: Mapping[str, Place]) -> Iterator[tuple[str, int, int, list[str]]]:
    """Yield ranges of files that hold objects side by side: file, begin, end, and their keys."""
    found: tuple[str, int, int, list[str]] | None = None
    for key, (path, offset, length) in sorted(places.items(), key=lambda item: item[1]):
        if found is not None:
            file, begin, end, keys = found
            if file == path and offset - end < _GAP and offset + length - begin < _SPAN:
                found = file, begin, max(end, offset + length), [*keys, key]
                continue
            yield found
        found = path, offset, offset + length, [key]
    if found is not None:
        yield found
