"""Where the blocks and objects of a distributed checkpoint are stored: file, offset and length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.paths import check_inside, inside

from .pickle_stubs import Record, Stub

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.files import Files

Place = tuple[str, int, int]
"""File (a path or URL), offset and length in bytes."""

_MOST_DIMS = 100


class Places:
    """Where an index says that blocks and objects are stored. Each file is opened once to get its size."""

    def __init__(self, folder: str, files: Files, limits: Limits) -> None:
        self._folder = folder
        self._files = files
        self._limits = limits
        self._known: dict[str, tuple[str, int]] = {}
        self._places: dict[str, dict[str, Place]] = {}
        self._texts: dict[int, tuple[Any, str]] = {}

    def add(self, at: Any, place: Any) -> None:
        """Add one entry of the index: what is stored (the key, and the offset of a block), and where.

        Raises:
            CheckpointError: the entry is damaged, or leads out of the folder or beyond the end of a file.
        """
        key, begin = fields(at, "fqn", "offset")
        name, offset, length = fields(place, "relative_path", "offset", "length")
        natural = type(offset) is type(length) is int and offset >= 0 and length >= 0
        if type(key) is not str or type(name) is not str or not natural:
            raise CheckpointError("its .metadata has a damaged entry of where something is stored")
        path, size = self._known.get(name) or self._file(name)
        if fields(place, "transform_descriptors")[0]:
            raise CheckpointError("its values are compressed or encrypted by an extension, which is not read")
        if offset + length > size:
            raise CheckpointError(
                f"{escape(name)} is truncated: it should have {offset + length} bytes or more"
            )
        places = self._places.get(key)
        if places is None:
            places = self._places[key] = {}
        places[self._text(begin)] = path, offset, length

    def find(self, key: str, begin: Any = None) -> Place | None:
        """Return where the block at offsets `begin` (or an object, without offsets) is stored, or None."""
        return self._places.get(key, {}).get(self._text(begin))

    def _file(self, name: str) -> tuple[str, int]:
        check_inside(name, "its .metadata")
        self._limits.check("files", len(self._known) + 1, "its .metadata names too many files")
        path = inside(self._folder, name)
        try:
            with self._files.open(path) as file:
                self._known[name] = path, file.size
        except CheckpointError as error:
            raise CheckpointError(f"its .metadata names a file that can't be read: {error}") from None
        return self._known[name]

    def _text(self, begin: Any) -> str:
        """Return offsets as text, because tuples from a file are never hashed. The text is cached."""
        known = self._texts.get(id(begin))
        if known is None:
            text = ",".join(map(str, begin)) if is_sizes(begin) else "-"
            known = self._texts[id(begin)] = begin, text
        return known[1]


def fields(entry: Any, *names: str) -> list[Any]:
    """Return attributes of an object in the index, None for missing ones."""
    if type(entry) is Record:
        return [entry.get(name) for name in names]
    attributes = entry.attributes if isinstance(entry, Stub) else {}
    return [attributes.get(name) for name in names]


def is_sizes(value: Any) -> bool:
    """Return whether a value can be the shape of a tensor or the offsets of a block."""
    return (
        isinstance(value, tuple)
        and len(value) <= _MOST_DIMS
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )
