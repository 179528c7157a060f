"""Sharded checkpoints: an index (``model.safetensors.index.json``) says which file holds which key."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.files.folders import names_in
from pytest_ckptcompat.files.paths import beside, inside

from . import safetensors, torch_legacy, torch_zip
from .diagnosis import what_it_is
from .json_header import Scanner
from .pickle_stubs import Dict

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.core.tensor_spec import Extent
    from pytest_ckptcompat.files.file import File
    from pytest_ckptcompat.files.files import Files

_SUFFIX = ".index.json"


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: File | None, files: Files, limits: Limits) -> Header | None:
    """Read a sharded checkpoint by its index, or by the folder that holds it."""
    if file is not None:
        shards = _shards(file, limits)
        return None if shards is None else _read(path, shards, files, limits)
    index = _index_in(path)
    if index is None:
        return None
    with files.open(index) as found:
        shards = _shards(found, limits)
    if shards is None:
        raise CheckpointError(f"{escape(posixpath.basename(index))} is no index of a sharded checkpoint")
    return _read(index, shards, files, limits)


def _index_in(folder: str) -> str | None:
    """The index in a folder; of two that are the same checkpoint, that of safetensors."""
    found = [name for name in names_in(folder) if name.endswith(_SUFFIX)]
    preferred = [name for name in found if "safetensors" in name] or found
    if len(preferred) > 1:
        names = ", ".join(escape(name, 80) for name in sorted(preferred)[:8])
        raise CheckpointError(f"the folder holds {len(preferred)} sharded checkpoints, name one: {names}")
    return inside(folder, preferred[0]) if preferred else None


def _shards(file: File, limits: Limits) -> dict[str, str] | None:
    """Key -> name of its file, if the file is an index."""
    if not file.read_at(0, min(64, file.size)).lstrip().startswith(b"{"):
        return None
    if file.size > limits.index and b"weight_map" not in file.read_at(0, min(4096, file.size)):
        return None
    limits.check("index", file.size, f"the index has {file.size} bytes")
    data = file.read_at(0, file.size)
    if b'weight_map"' not in data and not file.path.endswith(_SUFFIX):
        return None  # whatever is wrong with it, it is not an index that is wrong
    scanner = Scanner(data, "the index", limits)
    shards: dict[str, str] | None = None
    for name in scanner.members():
        if name != "weight_map":
            scanner.skip()
        elif shards is not None:
            raise scanner.error("it has 'weight_map' twice")
        else:
            shards = _weight_map(scanner, limits)
    scanner.end()
    return shards


def _weight_map(scanner: Scanner, limits: Limits) -> dict[str, str]:
    shards: dict[str, str] = {}
    names: dict[str, str] = {}
    for key in scanner.members():
        if key in shards:
            raise CheckpointError(f"the index has the key {escape(key)} twice")
        name = scanner.string()
        shards[key] = names.setdefault(name, name)
        limits.check("tensors", len(shards), "the index names too many tensors")
        limits.check("files", len(names), "the index names too many files")
    for name in names:
        check_inside(name, "the index")
    return shards


def check_inside(name: str, what: str) -> None:
    """See that a file's name leads nowhere but into the folder; a link in its place is the folder's matter.

    Raises:
        CheckpointError: it is absolute, climbs out, or is no name.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise CheckpointError(f"{what} names a file outside the checkpoint's folder: {escape(name)!r}")


def _read(index: str, shards: dict[str, str], files: Files, limits: Limits) -> Header:
    """The headers of all shards, put together in the order of the index."""
    headers = {
        name: _header(beside(index, name), name, files, limits) for name in dict.fromkeys(shards.values())
    }
    tree = Dict()
    storages: dict[str, tuple[Extent, ...]] = {}
    for key, name in shards.items():
        header = headers[name]
        held = header.tree
        if not isinstance(held, dict):
            raise CheckpointError(f"the shard {escape(name)} holds no state dict")
        if key not in held:
            raise CheckpointError(f"the index says that {escape(key)} is in {escape(name)}, and it is not")
        value = held[key]
        if isinstance(value, TensorSpec) and value.storage:
            storage = f"{name}:{value.storage}"
            storages[storage] = header.storages[value.storage]
            value = TensorSpec(value.dtype, value.shape, value.stride, value.offset, storage, value.note)
        tree[key] = value
    unsafe = next((header.unsafe for header in headers.values() if header.unsafe), "")
    kinds = sorted({header.format for header in headers.values()})
    return Header(f"sharded {' and '.join(kinds)}", tree, storages, unsafe)


def _header(path: str, name: str, files: Files, limits: Limits) -> Header:
    try:
        with files.open(path) as file:
            for known in (safetensors, torch_zip, torch_legacy):
                header: Header | None = known.pytest_ckptcompat_open(file=file, limits=limits)
                if header is not None:
                    return header
            head = file.read_at(0, min(4096, file.size))
            raise CheckpointError(f"it is {what_it_is(head, file.size, name)}")
    except CheckpointError as error:
        raise CheckpointError(f"shard {escape(name)}: {error}") from None
