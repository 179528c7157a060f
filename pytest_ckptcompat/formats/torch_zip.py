"""torch's format since 1.6: a zip archive with one pickle and one member for every storage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Extent, Member
from pytest_ckptcompat.files.file import Ahead
from pytest_ckptcompat.files.folders import names_in
from pytest_ckptcompat.files.paths import check_inside, inside

from .extents import Extents
from .pickle_machine import Machine
from .safe_names import refused
from .torch_names import Tensors
from .torch_script import UNSAFE, state_dict_of
from .zip_directory import Entry, read_directory
from .zip_members import check_readable, data_offset, read_member

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File
    from pytest_ckptcompat.files.files import Files

    from .pickle_stubs import Storage

_SMALL = (
    "version",
    ".data/version",
    ".format_version",
    ".storage_alignment",
    "byteorder",
    ".data/serialization_id",
)
_LONGEST_RECORD = 128
_DENSE = 1024
"""The archive's bytes per member below which local headers are read together with the values between."""

_VERSION = re.compile(rb"\s*\+?(\d{1,18})")
_NEWEST_VERSION = 10


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: File | None, files: Files, limits: Limits) -> Header | None:
    """Read a zip archive that torch.save wrote, or the folder to which it was unpacked."""
    return _unpacked(path, files, limits) if file is None else read_archive(file, limits)


def _unpacked(path: str, files: Files, limits: Limits) -> Header | None:
    """Return the header of an archive that was unpacked to a folder, or None if it is another folder."""
    if not {"data.pkl", "version"} <= set(names_in(path)):
        return None
    with files.open(inside(path, "data.pkl")) as file:
        limits.check("pickle_bytes", file.size, f"its pickle has {file.size} bytes")
        data = file.read_at(0, file.size)
    tensors = Tensors(limits)
    machine = Machine(data, names=tensors.names, persistent=tensors.storage, limits=limits)
    tree = machine.load()
    limits.check("files", len(tensors.storages), "the folder of the unpacked archive holds too many files")
    storages = {key: (_file_of(path, key, storage, files),) for key, storage in tensors.storages.items()}
    return Header("torch-zip", tree, storages, refused(machine), remarks=("unpacked",))


def _file_of(path: str, key: str, storage: Storage, files: Files) -> Extent:
    check_inside(key, "its pickle")
    name = inside(path, f"data/{key}")
    with files.open(name) as file:
        if file.size != storage.nbytes:
            raise CheckpointError(f"storage {escape(key)} has {file.size} bytes, and needs {storage.nbytes}")
    return Extent(name, 0, storage.nbytes)


def read_archive(file: File, limits: Limits) -> Header | None:
    """Return the header of a torch.save archive, or None if the file is not one.

    Raises:
        CheckpointError: the archive is damaged, or torch.save does not write such archives. The message does
            not have the path.
    """
    if file.size < 4 or file.read_at(0, 4) != b"PK\x03\x04":
        return None
    members = read_directory(file, limits)
    root = next(iter(members), "").partition("/")[0]
    if f"{root}/data.pkl" not in members:
        return None
    _check_kind(members, root)
    check_readable(members.values())
    _check_records(file, members, root)
    pickle = members[f"{root}/data.pkl"]
    limits.check("pickle_bytes", pickle.nbytes, f"its pickle has {pickle.nbytes} bytes")
    tensors = Tensors(limits)
    machine = Machine(
        read_member(file, pickle), names=tensors.names, persistent=tensors.storage, limits=limits
    )
    tree = machine.load()
    kind, unsafe = "torch-zip", refused(machine)
    if f"{root}/constants.pkl" in members:
        kind, unsafe, tree = "torchscript", UNSAFE, state_dict_of(tree, file, members, root, limits)
    return Header(kind, tree, _storages(file, members, f"{root}/data/", tensors), unsafe)


def _check_kind(members: dict[str, Entry], root: str) -> None:
    for name in members:
        if not name.startswith(f"{root}/"):
            raise CheckpointError(
                f"the zip archive has members outside its folder {escape(root)}: {escape(name)}"
            )


def _check_records(file: File, members: dict[str, Entry], root: str) -> None:
    """Check the small records that torch.load reads before the pickle and refuses if they are wrong."""
    found: dict[str, bytes] = {}
    for name in _SMALL:
        member = members.get(f"{root}/{name}")
        if member is None:
            continue
        if member.nbytes > _LONGEST_RECORD:
            raise CheckpointError(f"the zip archive's member {name!r} is not what torch.save writes")
        found[name] = read_member(file, member)
    version = found.get(".data/version", found.get("version"))
    if version is None:
        raise CheckpointError("the zip archive has no member 'version', so torch.load refuses it")
    number = _VERSION.match(version)
    if number is None or not 1 <= int(number[1]) <= _NEWEST_VERSION:
        raise CheckpointError(f"the zip archive's version is {_quoted(version)}, which torch.load refuses")
    _check_text(found)
    order = found.get("byteorder", b"little")
    if order == b"big":
        raise CheckpointError(
            "it was written on a big-endian machine; load and save it again on this one with torch"
        )
    if order != b"little":
        raise CheckpointError(f"the zip archive's byte order is {_quoted(order)}, which torch.load refuses")


def _check_text(found: dict[str, bytes]) -> None:
    try:
        int(found.get(".storage_alignment", b"64"))
        found.get(".data/serialization_id", b"").decode()
    except ValueError:
        raise CheckpointError(
            "the zip archive has a record that torch.load can't read: it is damaged"
        ) from None


def _quoted(record: bytes) -> str:
    return escape(repr(record), 60)


def _storages(file: File, members: dict[str, Entry], folder: str, tensors: Tensors) -> Extents:
    """Find the storages that the tensors need among the members of the archive.

    The bytes of a deflated storage, or of one in a remote file, are found by its local header when needed.
    """
    begins: dict[str, int] = {}
    packed: dict[str, int] = {}
    dense = not file.remote and file.size < _DENSE * len(members)
    reader: Any = Ahead(file) if dense else file
    for key, storage in tensors.storages.items():
        name = folder + key
        member = members.get(name)
        if member is None:
            raise CheckpointError(f"storage {escape(key)} has no member in the zip archive")
        if member.nbytes != storage.nbytes:
            raise CheckpointError(
                f"storage {escape(key)} has {member.nbytes} bytes in the archive, and needs {storage.nbytes}"
            )
        begins[key] = member.header
        if member.method:
            packed[key] = member.packed
        if not file.remote:
            begin = data_offset(reader, name, member.header, member.nbytes, packed.get(key))
            if not member.method:
                begins[key] = begin

    def extent(key: str) -> Extent:
        begin, nbytes = begins[key], tensors.storages[key].nbytes
        if file.remote or key in packed:
            return Member(file.path, begin, nbytes, folder + key, packed.get(key))
        return Extent(file.path, begin, nbytes)

    return Extents(begins, extent)
