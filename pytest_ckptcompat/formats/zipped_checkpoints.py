"""Zip archives of several torch.save checkpoints, as stable-baselines3 writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.files.file import Part

from .pickle_stubs import Dict, renamed
from .torch_zip import read_archive
from .zip_directory import read_directory
from .zip_members import check_readable, data_offset

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.core.tensor_spec import Extent
    from pytest_ckptcompat.files.file import File

_SUFFIXES = (".pth", ".pt")
_MOST = 64


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read every checkpoint in the archive, under its name without the suffix."""
    if file is None or file.size < 4 or file.read_at(0, 4) != b"PK\x03\x04":
        return None
    members = read_directory(file, limits)
    found = {name: member for name, member in members.items() if name.endswith(_SUFFIXES) and "/" not in name}
    if not found or len(found) > _MOST:
        return None
    check_readable(found.values())
    tree = Dict()
    storages: dict[str, tuple[Extent, ...]] = {}
    unsafe = ""
    for name, member in found.items():
        if member.method:
            raise CheckpointError(
                f"{escape(name)} is deflated in the zip archive: unpack it and open {escape(name)}"
            )
        begin = data_offset(file, name, member.header, member.nbytes)
        header = read_archive(Part(file, begin, member.nbytes), limits)
        if header is None:
            continue
        unsafe = unsafe or header.unsafe
        tree.put(name.rpartition(".")[0], renamed(header.tree, name))
        for key in header.storages:
            (extent,) = header.storages[key]
            storages[f"{name}:{key}"] = (replace(extent, offset=extent.offset + begin),)
    return Header("zip of torch-zip", tree, storages, unsafe) if tree else None
