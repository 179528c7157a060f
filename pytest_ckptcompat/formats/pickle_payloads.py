"""Copy a pickle without its payloads: byte strings stay in the file and are replaced by references.

A pickle of arrays has a few thousand operations with gigabytes of bytes between them. The operations are
copied one by one, as ``pickletools`` documents them, and not executed.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from pytest_ckptcompat.files.file import Ahead

if TYPE_CHECKING:
    from pytest_ckptcompat.files.file import File

_WINDOW = 1 << 16
_LONGEST_LINE = 4096
_FIXED = {
    **dict.fromkeys(b"KqhU\x80\x82\x8a\x8cC", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"JrjTXB\x84\x8b", 4),
    **dict.fromkeys(b"G\x95\x8d\x8e\x96", 8),
}
"""Opcode -> size in bytes of its argument, or of the length of its argument."""

_COUNTED = frozenset(b"UTXCB\x8a\x8b\x8c\x8d\x8e\x96")
_LINES = {**dict.fromkeys(b"IFLSVPpg", 1), **dict.fromkeys(b"ci", 2)}
_BYTES = frozenset(b"CB\x8e\x96TU")
"""Byte strings. Those of Python 2 (T, U) may also be text."""

_FRAME, _STOP = 0x95, 0x2E


class Payload:
    """Bytes of a pickle that stay in the file, given by offset and length."""

    __slots__ = ("nbytes", "offset")

    def __init__(self, offset: int, nbytes: int) -> None:
        self.offset = offset
        self.nbytes = nbytes


def without_payloads(file: File, most: int) -> bytes | None:
    """Replace every byte string in a pickle by a persistent id, ``(offset, length)``.

    Args:
        file: a file that begins with the pickle.
        most: the largest number of operations, and of bytes that remain.

    Returns:
        The shorter pickle, or None if it is damaged, too long or something else.
    """
    out = bytearray()
    ahead = Ahead(file, _WINDOW)

    def taken(at: int, count: int) -> bytes:
        return ahead.read_at(at, max(0, min(count, file.size - at)))

    at = 0
    for _ in range(most):
        if at >= file.size or len(out) > most:
            return None
        opcode = taken(at, 1)[0]
        if opcode in _LINES:
            end = at + 1
            for _ in range(_LINES[opcode]):
                found = taken(end, _LONGEST_LINE).find(b"\n")
                if found < 0:
                    return None
                end += found + 1
        else:
            end = at + 1 + _FIXED.get(opcode, 0)
        if opcode in _COUNTED:
            length = int.from_bytes(taken(at + 1, _FIXED[opcode]), "little")
            begin, end = end, end + length
            if end > file.size:
                return None
            text = opcode in b"TU" and length <= 256 and _is_text(taken(begin, length))
            if opcode in _BYTES and not text:
                out += b"\x8a\x08" + pack("<q", begin) + b"\x8a\x08" + pack("<q", length) + b"\x86Q"
                at = end
                continue
            if length > most:
                return None
        if opcode != _FRAME:
            out += taken(at, end - at)
        if opcode == _STOP:
            return bytes(out)
        at = end
    return None


def _is_text(data: bytes) -> bool:
    """Return whether a string of Python 2 is text rather than an array's bytes."""
    return all(32 <= byte < 127 for byte in data)
