"""torch's own format since 1.6: a zip archive with one pickle and one member for every storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Extent, Member

from .pickle_machine import Machine
from .safe_names import refused
from .torch_names import Tensors
from .zip_directory import Entry, check_stored, data_offset, read_directory, read_member

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File, Part

    from .pickle_stubs import Storage


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read a zip archive that torch.save wrote; others are left to others."""
    return None if file is None else read_archive(file, limits)


def read_archive(file: File | Part, limits: Limits) -> Header | None:
    """The header of an archive of torch.save; None if it is no zip archive, or one of another kind.

    Raises:
        CheckpointError: it is damaged, or not what torch.save writes; the text lacks the path.
    """
    if file.size < 4 or file.read_at(0, 4) != b"PK\x03\x04":
        return None
    members = read_directory(file, limits)
    root = next(iter(members), "").partition("/")[0]
    if f"{root}/data.pkl" not in members:
        return None
    _check_kind(members, root)
    check_stored(members.values())
    _check_byteorder(file, members.get(f"{root}/byteorder"))
    pickle = members[f"{root}/data.pkl"]
    limits.check("pickle_bytes", pickle.nbytes, f"its pickle has {pickle.nbytes} bytes")
    tensors = Tensors(limits)
    machine = Machine(
        read_member(file, pickle), names=tensors.names, persistent=tensors.storage, limits=limits
    )
    tree = machine.load()
    return Header("torch-zip", tree, _records(file, members, f"{root}/data/", tensors), refused(machine))


def _check_kind(members: dict[str, Entry], root: str) -> None:
    for name in members:
        if not name.startswith(f"{root}/"):
            raise CheckpointError(
                f"the zip archive has members outside its folder {escape(root)}: {escape(name)}"
            )
    if f"{root}/constants.pkl" in members:
        raise CheckpointError(
            "it is a TorchScript archive (torch.jit.save): a program with weights. Save the weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), ...)"
        )
    if f"{root}/version" not in members and f"{root}/.data/version" not in members:
        raise CheckpointError("the zip archive has no member 'version', so torch.load refuses it")


def _check_byteorder(file: File | Part, member: Entry | None) -> None:
    if member is None:
        return
    if member.nbytes > 16:
        raise CheckpointError("the zip archive's member 'byteorder' is not what torch.save writes")
    order = read_member(file, member)
    if order == b"big":
        raise CheckpointError(
            "it was written on a big-endian machine; load and save it again on this one with torch"
        )
    if order != b"little":
        raise CheckpointError(
            f"the zip archive's byte order is {escape(repr(order))}, which torch.load refuses"
        )


class _Records(Mapping[str, tuple[Extent, ...]]):
    """Where the bytes of every storage lie; the extents are made when they are asked for.

    Attributes:
        begins: key -> where its bytes begin; where local headers are dear to read, where that header stands.
    """

    def __init__(self, file: File | Part, folder: str, storages: Mapping[str, Storage]) -> None:
        self.begins: dict[str, int] = {}
        self._path = file.path
        self._remote = file.remote
        self._folder = folder
        self._storages = storages

    def __getitem__(self, key: str) -> tuple[Extent, ...]:
        begin, nbytes = self.begins[key], self._storages[key].nbytes
        if self._remote:
            return (Member(self._path, begin, nbytes, self._folder + key),)
        return (Extent(self._path, begin, nbytes),)

    def __iter__(self) -> Iterator[str]:
        return iter(self.begins)

    def __len__(self) -> int:
        return len(self.begins)


def _records(file: File | Part, members: dict[str, Entry], folder: str, tensors: Tensors) -> _Records:
    """The storages that the tensors need, held against the members that are there."""
    records = _Records(file, folder, tensors.storages)
    for key, storage in tensors.storages.items():
        name = folder + key
        member = members.get(name)
        if member is None:
            raise CheckpointError(f"storage {escape(key)} has no member in the zip archive")
        if member.nbytes != storage.nbytes:
            raise CheckpointError(
                f"storage {escape(key)} has {member.nbytes} bytes in the archive, and needs {storage.nbytes}"
            )
        records.begins[key] = (
            member.header if file.remote else data_offset(file, name, member.header, member.nbytes)
        )
    return records
