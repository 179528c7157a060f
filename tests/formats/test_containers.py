"""Promise 4 and 5: the container means what torch means, or is refused; tensors lie inside their storage."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_same, assert_same_state
from raw_zip import VALUES, Archive, Call, Raw, Ref, checkpoint, pickled, tensor

from pytest_ckptcompat import CheckpointError, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

W = torch.arange(6.0).reshape(2, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


def write(path: Path, archive: Archive | bytes) -> Path:
    path.write_bytes(archive if isinstance(archive, bytes) else archive.to_bytes())
    return path


def loaded(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=True)


def repacked(archive: Archive, **how: Any) -> bytes:
    """The archive as Python's zipfile writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **how) as out:
        for member in archive.members:
            out.writestr(member.name.decode(), member.data)
    return stream.getvalue()


GOOD = checkpoint()


def deflated(**changes: Any) -> Archive:
    """The archive with a storage that is deflated."""
    packed = zlib.compress(VALUES)[2:-4]
    return GOOD.with_member("data/0", **{"method": 8, "local_method": 8, "packed": packed, **changes})


ACCEPTED = {
    "deflated": repacked(GOOD, compression=zipfile.ZIP_DEFLATED),
    "a deflated storage": deflated(),
    "without checksums": replace(GOOD, members=[replace(member, crc=0) for member in GOOD.members]),
    "a version with a space and more": GOOD.with_member("version", data=b" 3rd"),
    "as torch writes it": GOOD,
    "without zip64": replace(GOOD, zip64=False),
    "repacked by zipfile": repacked(GOOD),
    "a comment": replace(GOOD, comment=b"made with love"),
    "without a byte order": GOOD.without("byteorder"),
    "version in .data": GOOD.without("version").plus(Raw(b"net/.data/version", b"3\n")),
    "a storage that no tensor uses": checkpoint(storages=[("0", VALUES), ("1", b"x")]),
    "members in another order": replace(GOOD, members=GOOD.members[::-1]),
    "entries of folders, as 'zip -r' writes them": repacked(
        replace(GOOD, members=[Raw(b"net/"), Raw(b"net/data/"), *GOOD.members]),
        compression=zipfile.ZIP_DEFLATED,
    ),
    "entries of folders at the end": replace(GOOD, members=[*GOOD.members, Raw(b"net/data/")]),
    "a root that is no ASCII": checkpoint(root="nétz"),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_torch_accepts_is_read_alike(path: Path, what: str) -> None:
    write(path, ACCEPTED[what])
    assert_same(loaded(path)["w"], W)
    assert_same_state(open_checkpoint(path), loaded(path))


REFUSED: dict[str, tuple[Archive | bytes, str]] = {
    "an entry twice": (GOOD.plus(Raw(b"net/data.pkl", pickled({}))), "two members called net/data.pkl"),
    "an entry twice but for case": (GOOD.plus(Raw(b"net/DATA.pkl", pickled({}))), "but for upper and lower case"),
    "two roots": (GOOD.plus(Raw(b"other/data.pkl", pickled({}))), "outside its folder net: other/data.pkl"),
    "a member without a folder": (GOOD.plus(Raw(b"readme", b"x")), "outside its folder net: readme"),
    "a prefix": (replace(GOOD, before=b"PK\x03\x04 something"), "stands before the first member"),
    "a prefix that the directory does not count": (b"PK\x03\x04" + GOOD.to_bytes(), "does not stand where"),
    "two archives in a row": (checkpoint({}).to_bytes() + GOOD.to_bytes(), "does not stand where"),
    "two archives, the second one shifted": (
        replace(GOOD, before=checkpoint({}).to_bytes()),
        "stands before the first member",
    ),
    "bytes behind": (replace(GOOD, after=b"x"), "bytes follow the end"),
    "an end record in the comment": (
        replace(GOOD, comment=struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)),
        "does not stand where|contradict|bytes follow",
    ),
    "bytes within the directory": (replace(GOOD, gap=b"1234"), "does not stand where|more bytes than members"),
    "fewer members than it says": (replace(GOOD, count=9), "ends too early"),
    "more members than it says": (replace(GOOD, count=2), "more bytes than members"),
    "two counts": (replace(GOOD, end={"wide": 3}), "end records contradict"),
    "a locator that points elsewhere": (replace(GOOD, end={"locator": -5}), "does not stand where"),
    "several disks": (replace(GOOD, end={"disk": 1}, zip64=False), "several disks"),
    "a member on another disk": (GOOD.with_member("data/0", disk=1), "several disks"),
    "a directory elsewhere": (replace(GOOD, shift=4), "does not stand where"),
    "another compression": (repacked(GOOD, compression=zipfile.ZIP_BZIP2), "compressed in a way that torch.load refuses"),
    "a deflated storage that says too much": (deflated(size=100_000), "sizes of net/data/0 .* contradict each other"),
    "a deflated storage of another method before it": (deflated(local_method=0), "contradict each other"),
    "a deflated storage of two sizes": (deflated(flags=0, local_size=24), "two sizes"),
    "flags of a patch": (GOOD.with_member("data/0", flags=0x20), "has zip flags that torch.load refuses"),
    "flags of a masked directory": (GOOD.with_member("data/0", flags=0x2000), "has zip flags that"),
    "a version that is not a number": (GOOD.with_member("version", data=b"x3\n"), "version is b'x3.*refuses"),
    "a version that is too new": (GOOD.with_member("version", data=b"11"), "version is b'11', which"),
    "a version before the first": (GOOD.with_member("version", data=b"0"), "version is b'0'"),
    "an alignment that is not a number": (GOOD.plus(Raw(b"net/.storage_alignment", b"64x")), "can't read"),
    "an identity that is not text": (GOOD.plus(Raw(b"net/.data/serialization_id", b"\xff")), "can't read"),
    "a record that is too long": (GOOD.plus(Raw(b"net/.format_version", b"1" * 200)), "not what torch.save writes"),
    "a folder with bytes": (GOOD.plus(Raw(b"net/more/", b"bytes")), "net/more/ .* is a folder and a file"),
    "an encrypted member": (GOOD.with_member("data/0", flags=1), "is encrypted"),
    "another name in the local header": (GOOD.with_member("data/0", local_name=b"net/data/9"), "contradict each other"),
    "a longer name in the local header": (GOOD.with_member("data/0", local_name=b"net/data/00"), "contradict each other"),
    "another method in the local header": (GOOD.with_member("data/0", local_method=8), "contradict each other"),
    "another size in the local header": (GOOD.with_member("data/0", flags=0, local_size=5), "two sizes"),
    "no local header": (GOOD.with_member("data/0", local_signature=b"PK\0\0"), "contradict each other"),
    "a local header elsewhere": (GOOD.with_member("data/0", header=1), "reaches into|contradict"),
    "overlapping members": (GOOD.with_member("data/0", size=1000), "reaches into what follows"),
    "a member beyond the directory": (GOOD.with_member("version", size=1000), "reaches into what follows"),
    "a wrong checksum of the pickle": (GOOD.with_member("data.pkl", crc=1), "checksum of net/data.pkl"),
    "a wrong checksum of the byte order": (GOOD.with_member("byteorder", crc=1), "checksum of net/byteorder"),
    "no storage": (GOOD.without("data/0"), "storage 0 has no member"),
    "a short storage": (GOOD.with_member("data/0", data=VALUES[:-1]), "has 23 bytes in the archive, and needs 24"),
    "a long storage": (GOOD.with_member("data/0", data=VALUES + b"more"), "has 28 bytes"),
    "no version": (GOOD.without("version"), "no member 'version'"),
    "big-endian": (GOOD.with_member("byteorder", data=b"big"), "big-endian"),
    "an unknown byte order": (GOOD.with_member("byteorder", data=b"middle"), "byte order is b'middle'"),
    "a name that is no UTF-8": (GOOD.plus(Raw(b"net/\xff", b"")), "not UTF-8"),
    "a size without its field": (GOOD.with_member("data/0", size=0xFFFFFFFF), "gives no size"),
    "no pickle": (GOOD.without("data.pkl"), "a zip archive, but not one of torch.save"),
    "no members": (Archive([]), "in no known format|a zip archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(path: Path, what: str) -> None:
    archive, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(write(path, archive))
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("packed", [b"\xff" * 24, zlib.compress(VALUES[:20])[2:-4], b"\3\0"])
def test_a_damaged_stream_is_an_error_when_it_is_read(path: Path, packed: bytes) -> None:
    ckpt = open_checkpoint(write(path, deflated(packed=packed)))
    with pytest.raises(CheckpointError, match="a deflated member of the zip archive is"):
        ckpt.tensor("w")


def test_parts_of_a_deflated_storage(path: Path) -> None:
    """Several tensors over one storage of more than a piece, read one by one and together."""
    base = torch.arange(700_000, dtype=torch.float32)
    state = {"whole": base, "head": base[:5], "middle": base[400_000:400_010], "end": base[-3:]}
    torch.save(state, path)
    with zipfile.ZipFile(path) as old:
        members = {each: old.read(each) for each in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
    assert_same_state(open_checkpoint(path), loaded(path))


def structure(data: bytes) -> list[int]:
    """The bytes of an archive that are neither its pickle nor values nor padding."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        begins = [entry.header_offset for entry in archive.infolist()]
        big = [entry for entry in archive.infolist() if entry.file_size > 100]
    directory = data.rindex(b"PK\1\2", 0, data.index(b"PK\1\2") + 4)
    heads = [at for begin in begins for at in range(begin, begin + 50)]
    small = [at for begin in begins for at in range(begin + 50, begin + 120) if data[at] not in b"Z"]
    inside = {
        at
        for entry in big
        for at in range(entry.header_offset + 50, entry.header_offset + entry.file_size + 120)
    }
    return sorted({*heads, *small, *range(directory, len(data))} - inside)


def test_what_torch_refuses_of_a_damaged_archive_is_refused(path: Path) -> None:
    """A bit of any byte of the structure, and of the small records, turned: torch never refuses what we take."""
    data = torch_saved(OrderedDict(w=W))
    taken = []
    for at in structure(data):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        write(path, bytes(damaged))
        try:
            open_checkpoint(path).state_dict()
        except CheckpointError:
            continue
        taken.append(at)
        try:
            loaded(path)
        except Exception as error:
            raise AssertionError(f"byte {at}: torch says {error}") from error
    assert len(taken) > 100, "nothing was tried"


def torch_saved(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def test_every_truncation_is_an_error(path: Path) -> None:
    data = GOOD.to_bytes()
    for length in range(1, len(data)):
        with pytest.raises(CheckpointError):
            open_checkpoint(write(path, data[:length]))


def test_members_beyond_4_gb(path: Path) -> None:
    """torch.save gives 64-bit sizes only to members that need them; zipfile is made to give them always."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        for member in GOOD.members:
            with out.open(member.name.decode(), "w", force_zip64=True) as into:
                into.write(member.data)
    assert_same(open_checkpoint(write(path, stream.getvalue())).tensor("w"), W)
    wide = struct.pack("<2HQ", 1, 8, len(VALUES))
    small = GOOD.with_member(
        "data/0", size=0xFFFFFFFF, packed=None, extra=struct.pack("<2H2Q", 1, 16, 24, 24)
    )
    assert_same(open_checkpoint(write(path, small)).tensor("w"), W)
    assert len(wide) == 12


# -- tensors and their storage -----------------------------------------------------------------------------

INSIDE = {
    "whole": tensor(),
    "part": tensor(offset=2, size=(2, 2), stride=(2, 1)),
    "last element": tensor(offset=5, size=(), stride=()),
    "repeated": tensor(size=(9, 9), stride=(0, 0)),
    "none beyond": tensor(offset=100, size=(0, 3), stride=(3, 1)),
    "sizes of one with any stride": tensor(offset=5, size=(1, 1), stride=(100, 7)),
}
OUTSIDE = {
    "one too many": tensor(size=(7,), stride=(1,)),
    "offset": tensor(offset=1),
    "stride": tensor(size=(2, 3), stride=(4, 1)),
    "negative stride": tensor(stride=(-3, 1)),
    "negative size": tensor(size=(-2, 3)),
    "negative offset": tensor(offset=-1, size=(), stride=()),
    "huge": tensor(size=(1 << 40, 1 << 40), stride=(0, 0)),
    "huge size": tensor(size=(1 << 64, 0)),
    "huge stride": tensor(size=(0, 3), stride=(1 << 64, 1)),
    "huge offset": tensor(offset=1 << 64, size=(0,), stride=(1,)),
    "sizes that are a list": tensor(size=[2, 3]),
    "sizes that are floats": tensor(size=(2.0, 3.0)),
    "sizes that are booleans": tensor(size=(True, True), stride=(1, 1)),
    "fewer strides than sizes": tensor(stride=(1,)),
    "no storage": tensor(storage=5),
    "a storage of strings": tensor(Ref(kind=str)),
    "a storage of negative size": tensor(Ref(numel=-1)),
    "a storage whose key is a number": tensor(Ref(key=0)),
    "a storage whose key is a tuple": tensor(Ref(key=("0",))),
    "a storage of another kind": tensor(Ref(what="tensor")),
    "a storage with two types": [tensor(), tensor(Ref(kind=torch.IntStorage))],
    "a storage with two sizes": [tensor(), tensor(Ref(numel=3), size=(), stride=())],
    "a storage larger than its member": tensor(Ref(numel=7)),
    "a float8 view of a storage of floats, beyond": Call(
        torch._utils._rebuild_tensor_v3, Ref(), 0, (25,), (1,), False, {}, torch.float8_e5m2
    ),
    "a dtype that is none": Call(
        torch._utils._rebuild_tensor_v3, Ref(), 0, (1,), (1,), False, {}, torch.nn.ReLU
    ),
    "too few arguments": Call(torch._utils._rebuild_tensor_v2, Ref()),
    "sizes whose product overflows before it is none": tensor(size=(1 << 62, 4, 0), stride=(1, 1, 1)),
    "a view that counts more than 63 bits": tensor(size=(1 << 32, 1 << 31), stride=(0, 0)),
}


@pytest.mark.parametrize("what", INSIDE)
def test_tensors_inside_their_storage_are_read(path: Path, what: str) -> None:
    write(path, checkpoint({"w": INSIDE[what]}))
    assert_same_state(open_checkpoint(path), loaded(path))


@pytest.mark.parametrize("what", OUTSIDE)
def test_tensors_outside_their_storage_are_refused(path: Path, what: str) -> None:
    with pytest.raises(CheckpointError, match=r"damaged|in the archive"):
        open_checkpoint(write(path, checkpoint({"w": OUTSIDE[what]})))
