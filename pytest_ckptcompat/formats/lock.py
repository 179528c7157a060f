"""Lock files: keys, shapes, dtypes and ties as JSON."""

from __future__ import annotations

from collections import OrderedDict
from types import NoneType
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.keys import natural
from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, TensorSpec, contiguous_stride

from .diagnosis import damaged_lock
from .json_header import loads
from .pickle_stubs import LOCKED, Dict, Global, Stub

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File

MARK = "ckptcompat_lock"

VERSION = 2
"""The version of locks with outputs or metadata. Others have version 1, which older releases can read."""


def versions(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the versions in a state dict's ``_metadata`` that are not 1, or None without ``_metadata``."""
    if metadata is None:
        return None
    found = {
        module: about.get("version")
        for module, about in metadata.items()
        if isinstance(about, dict) and module
    }
    return {module: found[module] for module in sorted(found, key=natural) if found[module] not in (1, None)}


def metadata_of(found: Mapping[str, Any] | None, keys: Iterable[str]) -> OrderedDict[str, Any] | None:
    """Return the ``_metadata`` from which `versions` made `found`. All other modules get version 1."""
    if found is None:
        return None
    metadata: OrderedDict[str, Any] = OrderedDict({"": {"version": 1}})
    for key in keys:
        parts = key.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            metadata.setdefault(".".join(parts[:depth]), {"version": 1})
    for module, version in found.items():
        metadata[module] = {"version": version}
    return metadata


FORMAT = "lock"

_HEAD = f'"{MARK}"'.encode()


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read a lock file."""
    if file is None or _HEAD not in file.read_at(0, min(64, file.size)):
        return None
    limits.check("index", file.size, f"a lock file of {file.size} bytes")
    data = file.read_at(0, file.size)
    content = loads(data, limits, lambda why: damaged_lock(why, data), finite=False)
    if not isinstance(content, dict) or content.get(MARK) not in (1, VERSION):
        raise CheckpointError(f"a lock file of a version above {VERSION}: update pytest-ckptcompat")
    return header_of(content, limits)


def header_of(content: Mapping[str, Any], limits: Limits) -> Header:
    """Return the header that the content of a lock file describes.

    Raises:
        CheckpointError: a part of the lock is damaged.
    """
    rows = content.get("tensors")
    if not isinstance(rows, dict):
        raise _damaged("it has no table 'tensors'")
    limits.check("tensors", len(rows), f"{len(rows)} tensors")
    storages = _storages(content.get("ties"), rows)
    tree = Dict()
    for key, row in rows.items():
        tree[key] = _spec(key, row, storages.get(key) or key, limits)
    objects = content.get("objects")
    for key in objects if isinstance(objects, list) else ():
        tree[str(key)] = Stub(Global(LOCKED))
    found = content.get("versions")
    metadata = metadata_of(found, rows) if isinstance(found, dict) else None
    if metadata is not None:
        tree.attributes = {"_metadata": metadata}
    plain, behaviour = content.get("metadata", {}), content.get("behaviour")
    if not isinstance(plain, dict) or not isinstance(behaviour, (dict, NoneType)):
        raise _damaged("'metadata' and 'behaviour' are tables")
    source = content.get("source")
    noted = source.get("sha256") if isinstance(source, dict) else None
    return Header(
        FORMAT, tree, metadata=plain, behaviour=behaviour, sha256=noted if isinstance(noted, str) else ""
    )


def _storages(ties: Any, rows: dict[str, Any]) -> dict[str, str]:
    """Return key -> name of the shared storage, for tied keys."""
    storages: dict[str, str] = {}
    for tied in ties if isinstance(ties, list) else ():
        for key in tied if isinstance(tied, list) else ():
            if not isinstance(key, str) or key not in rows:
                raise _damaged(f"the tied key {escape(str(key), 60)} is not in it")
            storages[key] = tied[0]
    return storages


def _spec(key: str, row: Any, storage: str, limits: Limits) -> TensorSpec:
    match row:
        case [str(dtype), list(sizes), *note] if all(type(size) is int and size >= 0 for size in sizes):
            limits.check("dims", len(sizes), f"{len(sizes)} dimensions of {escape(key, 60)}")
            if dtype not in ITEMSIZE and not note:
                raise _damaged(f"{escape(key, 60)} has dtype {escape(dtype, 60)!r}, not one of torch's")
            shape = tuple(sizes)
            return TensorSpec(
                dtype, shape, contiguous_stride(shape), 0, storage, note=str(note[0]) if note else ""
            )
    raise _damaged(f"{escape(key, 60)} is {escape(str(row), 60)}")


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(damaged_lock(why, b""))
