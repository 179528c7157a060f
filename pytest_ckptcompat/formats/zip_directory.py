"""Read the directory of a zip archive strictly: what two readers could read differently is refused.

The layout is that of PKWARE's APPNOTE.TXT. torch writes every member uncompressed, with a zip64 end record,
but can also read deflated members.
"""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File

_END = Struct("<4s4H2IH")
_END64 = Struct("<4sQ2H2I4Q")
_FIELD = Struct("<2H")
_LOCATOR64 = Struct("<4sIQI")
_CENTRAL = Struct("<4s4x2H4x3I4H2x2I")
LOCAL = Struct("<4s5H3I2H")
_MOST_COMMENT = 0xFFFF
FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
_MOVED = (
    "the zip archive does not stand where its end says: something was put before or into it, or it is damaged"
)
_FOLDER = 0x10


class Entry(NamedTuple):
    """One member: offset of its local header, compressed and uncompressed size, checksum and flags."""

    name: str
    header: int
    packed: int
    nbytes: int
    crc: int
    method: int
    flags: int


def read_directory(file: File, limits: Limits) -> dict[str, Entry]:
    """Return the members of the archive by name, in the order of the directory, without folders.

    Raises:
        CheckpointError: the archive is damaged or ambiguous. The message does not have the path.
    """
    count, offset, size = _find_directory(file)
    limits.check("zip_entries", count, f"the zip archive says it has {count} members")
    limits.check("zip_entries", size // 256, f"the zip archive's directory has {size} bytes")
    members = _members(file.read_at(offset, size), count, limits)
    _check_layout(members, offset)
    return {member.name: member for member in members if not member.name.endswith("/")}


def _find_directory(file: File) -> tuple[int, int, int]:
    """Return the number of members in the directory, its offset and its size."""
    records = _END64.size + _LOCATOR64.size + _END.size
    start = max(0, file.size - records)
    tail = file.read_at(start, file.size - start)
    if tail[-_END.size :][:4] != b"PK\x05\x06":  # a comment follows the record
        start = max(0, start - _MOST_COMMENT)
        tail = file.read_at(start, file.size - start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise CheckpointError(
            "the zip archive is truncated: its end, with its directory, is missing; copy or download it again"
        )
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise CheckpointError(
            "bytes follow the end of the zip archive: it is damaged, or something was appended"
        )
    split = bool(disk or first_disk)
    end = start + at
    locator = at - _LOCATOR64.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        narrow = (here, count, size, offset)
        _, _, end, disks = _LOCATOR64.unpack_from(tail, locator)
        split = split or disks != 1
        if end - start != locator - _END64.size or tail[end - start : end - start + 4] != b"PK\x06\x06":
            raise CheckpointError(_MOVED)
        _, length, _, _, disk, first_disk, here, count, size, offset = _END64.unpack_from(tail, end - start)
        wide = (here, count, size, offset)
        told = all(
            n in (w, full)
            for n, w, full in zip(narrow, wide, (_FULL16, _FULL16, FULL32, FULL32), strict=True)
        )
        if length != _END64.size - 12 or not told:
            raise CheckpointError("the zip archive's end records contradict each other")
    if split or disk or first_disk or here != count:
        raise CheckpointError("the zip archive is split over several disks")
    if offset + size != end:
        raise CheckpointError(_MOVED)
    return count, offset, size


def _members(directory: bytes, count: int, limits: Limits) -> list[Entry]:
    members = []
    position = 0
    longest = limits.key_bytes
    for _ in range(count):
        if position + _CENTRAL.size > len(directory):
            raise CheckpointError("the zip archive's directory ends too early")
        signature, flags, method, crc, packed, nbytes, length, extra, comment, disk, attributes, header = (
            _CENTRAL.unpack_from(directory, position)
        )
        if signature != b"PK\x01\x02":
            raise CheckpointError("the zip archive's directory is damaged")
        position += _CENTRAL.size
        raw = directory[position : position + length]
        if length > longest:
            limits.check("key_bytes", length, f"a member of the zip archive has a name of {length} bytes")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"a name in the zip archive is not UTF-8: {escape(repr(raw))}") from None
        position += length
        if nbytes == FULL32 or packed == FULL32 or header == FULL32:
            nbytes, packed, header = _wide(
                directory[position : position + extra], nbytes, packed, header, name
            )
        position += extra + comment
        if disk:
            raise CheckpointError("the zip archive is split over several disks")
        if nbytes if name.endswith("/") else attributes & _FOLDER:
            raise CheckpointError(f"{escape(name)} in the zip archive is a folder and a file: it is damaged")
        members.append(Entry(name, header, packed, nbytes, crc, method, flags))
    if position != len(directory):
        raise CheckpointError("the zip archive's directory has more bytes than members")
    return members


def _wide(extra: bytes, nbytes: int, packed: int, header: int, name: str) -> tuple[int, int, int]:
    """Return the 64-bit sizes and offset of a member from its zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = _FIELD.unpack_from(extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            values = [nbytes, packed, header]
            for index, value in enumerate(values):
                if value == FULL32 and len(field) >= 8:
                    values[index] = int.from_bytes(field[:8], "little")
                    field = field[8:]
            return values[0], values[1], values[2]
        at += 4 + length
    raise CheckpointError(f"the zip archive gives no size for {escape(name)}")


def _check_layout(members: list[Entry], directory: int) -> None:
    """Check that names are unique, members don't overlap, and nothing is before the first."""
    exact = [member.name for member in members]
    for names, how in ((exact, ""), ([*map(str.casefold, exact)], ", but for upper and lower case")):
        if len(set(names)) != len(names):
            (twice, _), *_ = Counter(names).most_common(1)
            raise CheckpointError(f"the zip archive has two members called {escape(twice)}{how}")
    end = 0
    last = ""
    for name, header, packed, *_ in sorted(members, key=itemgetter(1)):
        if header < end:
            raise CheckpointError(f"{escape(last)} reaches into what follows it in the zip archive")
        if header and not last:
            raise CheckpointError("something stands before the first member of the zip archive")
        end, last = header + LOCAL.size + len(name) + packed, name
    if end > directory:
        raise CheckpointError(f"{escape(last)} reaches into what follows it in the zip archive")
