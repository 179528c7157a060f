"""Zip archives byte by byte, as torch.save writes them or with one thing wrong."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass
class Raw:
    """One member; what is None follows from the rest."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0x0808
    crc: int | None = None
    size: int | None = None
    local_name: bytes | None = None
    local_size: int = 0
    local_method: int = 0
    local_signature: bytes = b"PK\x03\x04"
    extra: bytes = b""
    local_extra: bytes = b"FB\x00\x00"
    header: int | None = None
    disk: int = 0
    packed: bytes | None = None

    def local(self) -> bytes:
        name = self.name if self.local_name is None else self.local_name
        sizes = (self.local_size, self.local_size)
        head = struct.pack(
            "<4s5H3I2H",
            self.local_signature,
            0,
            self.flags,
            self.local_method,
            0,
            0,
            0,
            *sizes,
            len(name),
            len(self.local_extra),
        )
        return head + name + self.local_extra + (self.data if self.packed is None else self.packed)

    def central(self, offset: int) -> bytes:
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.size is None else self.size
        packed = size if self.packed is None else len(self.packed)
        head = struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02", 0, 0, self.flags, self.method, 0, 0, crc, packed, size,
            len(self.name), len(self.extra), 0, self.disk, 0, 0, offset if self.header is None else self.header,
        )  # fmt: skip
        return head + self.name + self.extra


@dataclass
class Archive:
    """An archive, its members in order, and what may be wrong with its end."""

    members: list[Raw]
    before: bytes = b""
    after: bytes = b""
    comment: bytes = b""
    count: int | None = None
    shift: int = 0
    zip64: bool = True
    gap: bytes = b""
    end: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        body, directory = bytearray(self.before), bytearray()
        for member in self.members:
            directory += member.central(len(body))
            body += member.local()
        count = len(self.members) if self.count is None else self.count
        start = len(body) + self.shift
        out = bytes(body + directory + self.gap)
        if self.zip64:
            where = len(out) + self.end.get("locator", 0)
            wide = self.end.get("wide", count)
            out += struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0, 0, 0, 0, wide, wide, len(directory), start)
            out += struct.pack("<4sIQI", b"PK\x06\x07", 0, where, 1)
        disk = self.end.get("disk", 0)
        few = min(count, 0xFFFF)
        out += struct.pack(
            "<4s4H2IH", b"PK\x05\x06", disk, disk, few, few, len(directory), start, len(self.comment)
        )
        return out + self.comment + self.after

    def with_member(self, name: str, **changes: Any) -> Archive:
        """The archive with one member changed."""
        wanted = name.encode()
        return replace(
            self, members=[replace(m, **changes) if m.name.endswith(wanted) else m for m in self.members]
        )

    def plus(self, *members: Raw, first: bool = False) -> Archive:
        """The archive with more members."""
        return replace(self, members=[*members, *self.members] if first else [*self.members, *members])

    def without(self, name: str) -> Archive:
        """The archive without one member."""
        return replace(
            self, members=[member for member in self.members if not member.name.endswith(name.encode())]
        )


VALUES = struct.pack("<6f", *range(6))


def pickled(tree: Any = None, protocol: int = 2) -> bytes:
    """The pickle of an object, in which `Ref` stands for a storage and `Call` for a call."""
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(OrderedDict(w=tensor()) if tree is None else tree)
    return stream.getvalue()


class Ref:
    """A storage, as a pickle refers to it."""

    def __init__(
        self, key: Any = "0", numel: Any = 6, kind: Any = torch.FloatStorage, what: Any = "storage"
    ) -> None:
        self.reference: Any = (what, kind, key, "cpu", numel)


class Call:
    """A call that the pickle asks for, and the state that it sets on what that gives, if any."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.function = function
        self.args = args
        self.state = state

    def __reduce__(self) -> Any:
        return self.function, self.args, self.state


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.reference if isinstance(obj, Ref) else None


def tensor(storage: Any = None, offset: Any = 0, size: Any = (2, 3), stride: Any = (3, 1)) -> Call:
    """A tensor over a storage, as torch pickles it."""
    storage = Ref() if storage is None else storage
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def checkpoint(
    tree: Any = None, *, root: str = "net", storages: Iterable[tuple[str, bytes]] = (("0", VALUES),)
) -> Archive:
    """What torch.save writes, its parts to be changed."""
    members = [Raw(f"{root}/data.pkl".encode(), tree if isinstance(tree, bytes) else pickled(tree))]
    members.append(Raw(f"{root}/byteorder".encode(), b"little"))
    members += [Raw(f"{root}/data/{key}".encode(), data) for key, data in storages]
    members.append(Raw(f"{root}/version".encode(), b"3\n"))
    return Archive(members)
