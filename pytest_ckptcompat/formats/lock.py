"""Lock files: keys, shapes and dtypes of a checkpoint or model whose values are elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.errors import CheckpointError
from pytest_ckptcompat.hookspecs import hookimpl
from pytest_ckptcompat.keys import escape
from pytest_ckptcompat.lock import MARK, VERSION, metadata_of
from pytest_ckptcompat.tensors import TensorSpec, contiguous_stride

from .faults import damaged_lock
from .header import Header
from .inert import Dict
from .json_scan import loads

if TYPE_CHECKING:
    from pytest_ckptcompat.reading.caps import Limits
    from pytest_ckptcompat.reading.files import File

FORMAT = "lock"
_HEAD = f'"{MARK}"'.encode()


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read a lock file."""
    if file is None or _HEAD not in file.read_at(0, min(64, file.size)):
        return None
    limits.check("index", file.size, f"a lock file of {file.size} bytes")
    data = file.read_at(0, file.size)
    try:
        content = loads(data, limits)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(damaged_lock(escape(str(error), 120), data)) from None
    if not isinstance(content, dict) or content.get(MARK) != VERSION:
        raise CheckpointError(f"a lock file of another version than {VERSION}: update pytest-ckptcompat")
    rows = content.get("tensors")
    if not isinstance(rows, dict):
        raise _damaged("it has no table 'tensors'")
    limits.check("tensors", len(rows), f"{len(rows)} tensors")
    storages = _storages(content.get("ties"), rows)
    tree = Dict()
    for key, row in rows.items():
        tree[key] = _spec(key, row, storages.get(key) or key, limits)
    for key in content.get("objects") or ():
        tree[str(key)] = None
    found = content.get("versions")
    metadata = metadata_of(found, rows) if isinstance(found, dict) else None
    if metadata is not None:
        tree.attributes = {"_metadata": metadata}
    return Header(FORMAT, tree)


def _storages(ties: Any, rows: dict[str, Any]) -> dict[str, str]:
    """Key -> the name of the storage that it shares with others."""
    storages: dict[str, str] = {}
    for tied in ties if isinstance(ties, list) else ():
        for key in tied if isinstance(tied, list) else ():
            if key not in rows:
                raise _damaged(f"the tied key {escape(str(key), 60)} is not in it")
            storages[key] = tied[0]
    return storages


def _spec(key: str, row: Any, storage: str, limits: Limits) -> TensorSpec:
    match row:
        case [str(dtype), list(sizes), *note] if all(type(size) is int and size >= 0 for size in sizes):
            limits.check("dims", len(sizes), f"{len(sizes)} dimensions of {escape(key, 60)}")
            shape = tuple(sizes)
            return TensorSpec(
                dtype, shape, contiguous_stride(shape), 0, storage, note=str(note[0]) if note else ""
            )
    raise _damaged(f"{escape(key, 60)} is {escape(str(row), 60)}")


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(damaged_lock(why, b""))
