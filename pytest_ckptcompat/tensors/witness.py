"""Remember where a checkpoint's values are in memory, so that they are not read again."""

from __future__ import annotations

import ctypes
import weakref
import zlib
from dataclasses import dataclass

import torch


@dataclass
class Room:
    """The number of bytes that may still be kept in memory."""

    left: int


class Witness:
    """The CRC-32 of one tensor's bytes, and a tensor in memory that has them.

    The tensor into which the values were read may change afterwards, also in ways that torch does not count.
    It is used only after its bytes were compared, and then as long as torch counts no change.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._digest: int | None = None
        self._holder: weakref.ref[torch.Tensor] | None = None
        self._values: torch.Tensor | None = None
        self._version = 0
        self._known: int | None = None

    def note(self, tensor: torch.Tensor) -> None:
        """Remember a tensor into which the values were just read, with the same dtype."""
        self._digest = digest(tensor)
        self._holder, self._known = (None if self._digest is None else weakref.ref(tensor)), None

    def keep(self, values: torch.Tensor) -> None:
        """Keep values that were just read, if there is room."""
        size = values.numel() * values.element_size()
        if self._values is None and size <= self._room.left:
            self._room.left -= size
            self._values, self._version = values, values._version

    def is_in(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor of the same dtype and shape has the bytes that were read."""
        if self._digest is None or digest(tensor) != self._digest:
            return False
        self._holder, self._known = weakref.ref(tensor), tensor._version
        return True

    def values(self) -> torch.Tensor | None:
        """Return the kept values, or None if there are none or they were changed."""
        kept = self._values
        return kept if kept is not None and kept._version == self._version else None

    def holder(self) -> torch.Tensor | None:
        """Return a tensor in memory that has the values and must not be changed, or None."""
        if (kept := self.values()) is not None:
            return kept
        found = None if self._holder is None else self._holder()
        if found is None or (self._known != found._version and not self.is_in(found)):
            return None
        return found


def digest(tensor: torch.Tensor) -> int | None:
    """Return the CRC-32 of a contiguous CPU tensor's bytes, or None for any other tensor."""
    plain = (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )
    if not plain:
        return None
    size = tensor.numel() * tensor.element_size()
    return zlib.crc32((ctypes.c_char * size).from_address(tensor.data_ptr())) if size else 0
