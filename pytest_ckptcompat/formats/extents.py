"""Where the bytes of storages are, in a file with very many of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from pytest_ckptcompat.core.tensor_spec import Extent


class Extents(Mapping[str, tuple[Extent, ...]]):
    """The extent of each storage, made on demand.

    Args:
        keys: the names of the storages.
        extent: returns the extent of a storage; raises KeyError for an unknown name.
    """

    def __init__(self, keys: Collection[str], extent: Callable[[str], Extent]) -> None:
        self._keys = keys
        self._extent = extent

    def __getitem__(self, key: str) -> tuple[Extent, ...]:
        return (self._extent(key),)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
