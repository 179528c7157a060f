"""Read the members of a zip archive, stored or deflated."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

from .zip_directory import FULL32, LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ckptcompat.files.file import File

    from .zip_directory import Entry

_ENCRYPTED, _DESCRIPTOR_FOLLOWS = 0x1 | 0x40, 0x8
_REFUSED = _ENCRYPTED | 0x20 | 0x2000  # patches, and directories whose fields are masked
_STORED, _DEFLATED = 0, 8
_MOST_INFLATED = 1040
_PIECE = 1 << 20


def check_readable(members: Iterable[Entry]) -> None:
    """Check that every member is stored or deflated.

    Raises:
        CheckpointError: a member is encrypted, has flags that torch refuses, or is compressed otherwise.
    """
    for member in members:
        if member.flags & _REFUSED:
            what = "is encrypted" if member.flags & _ENCRYPTED else "has zip flags that torch.load refuses"
            raise CheckpointError(f"{escape(member.name)} in the zip archive {what}")
        if member.method not in (_STORED, _DEFLATED):
            raise CheckpointError(
                f"{escape(member.name)} in the zip archive is compressed in a way that torch.load refuses: "
                "unpack it and pack it again with 'zip -0', or save the checkpoint again"
            )
        fits = member.packed == member.nbytes if member.method == _STORED else _can_inflate(member)
        if not fits:
            raise CheckpointError(
                f"the sizes of {escape(member.name)} in the zip archive contradict each other"
            )


def _can_inflate(member: Entry) -> bool:
    """Return whether the sizes are possible: deflate compresses to about 1/1032 at best."""
    return member.nbytes <= _MOST_INFLATED * member.packed


def data_offset(file: File, name: str, header: int, nbytes: int, packed: int | None = None) -> int:
    """Return the offset of a member's bytes, after its local header, which must agree with the directory.

    Args:
        file: the archive.
        name: the name of the member.
        header: the offset of its local header.
        nbytes: its uncompressed size in bytes.
        packed: its compressed size in bytes if it is deflated, else None.

    Raises:
        CheckpointError: the local header contradicts the directory.
    """
    encoded = name.encode()
    wanted = LOCAL.size + len(encoded)
    data = file.read_at(header, min(wanted, file.size - header))
    if len(data) < wanted:
        raise CheckpointError(f"the zip archive is truncated within the header of {escape(name)}")
    signature, _, flags, method, _, _, _, small, large, length, extra = LOCAL.unpack_from(data)
    known = method == (_STORED if packed is None else _DEFLATED) and data[LOCAL.size :] == encoded
    if signature != b"PK\x03\x04" or not known or length != len(encoded):
        raise CheckpointError(
            f"the zip archive's directory and the header of {escape(name)} contradict each other"
        )
    for told, size in ((small, nbytes if packed is None else packed), (large, nbytes)):
        if told not in (size, FULL32) and (told or not flags & _DESCRIPTOR_FOLLOWS):
            raise CheckpointError(f"the zip archive gives two sizes for {escape(name)}")
    return int(header + wanted + extra)


def read_member(file: File, member: Entry) -> bytes:
    """Return the bytes of a small member, after checking its checksum (torch can leave checksums out).

    Raises:
        CheckpointError: the checksum is wrong, or the headers contradict each other.
    """
    packed = member.packed if member.method == _DEFLATED else None
    begin = data_offset(file, member.name, member.header, member.nbytes, packed)
    if packed is None:
        data = file.read_at(begin, member.nbytes)
    else:
        buffer = bytearray(member.nbytes)
        inflate(file, begin, packed, memoryview(buffer))
        data = bytes(buffer)
    if member.crc and zlib.crc32(data) != member.crc:
        raise CheckpointError(
            f"the checksum of {escape(member.name)} in the zip archive is wrong: it is damaged"
        )
    return data


def inflate(file: File, begin: int, packed: int, into: memoryview, skip: int = 0) -> None:
    """Fill a buffer with the bytes of a deflated member, piece by piece.

    Args:
        file: the archive.
        begin: the offset of the deflated bytes.
        packed: their number.
        into: the buffer to fill.
        skip: how many uncompressed bytes to skip first.

    Raises:
        CheckpointError: the bytes are damaged, or fewer than the directory says.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    read, passed, filled = 0, 0, 0
    try:
        while filled < len(into):
            piece = stream.unconsumed_tail
            if not piece and read < packed:
                piece = file.read_at(begin + read, min(_PIECE, packed - read))
                read += len(piece)
            out = stream.decompress(piece, _PIECE)
            if not out and not piece:
                raise CheckpointError(
                    "a deflated member of the zip archive is shorter than its directory says"
                )
            ahead = min(len(out), skip - passed)
            passed += ahead
            wanted = out[ahead : ahead + len(into) - filled]
            into[filled : filled + len(wanted)] = wanted
            filled += len(wanted)
    except zlib.error as error:
        raise CheckpointError(f"a deflated member of the zip archive is damaged: {error}") from None
