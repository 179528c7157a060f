"""Sharded checkpoints: an index (``model.safetensors.index.json``) says which file holds which key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.files.paths import about, beside, check_inside, inside

from . import safetensors, torch_legacy, torch_zip
from .diagnosis import what_it_is
from .json_header import loads
from .pickle_stubs import Dict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.core.tensor_spec import Extent
    from pytest_ckptcompat.files.file import File
    from pytest_ckptcompat.files.files import Files

_SUFFIX = ".index.json"


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: File | None, files: Files, limits: Limits) -> Header | None:
    """Read a sharded checkpoint, given its index."""
    shards = None if file is None else _shards(file, limits)
    return None if shards is None else _read(path, shards, files, limits)


def header_of(path: str, files: Files, limits: Limits) -> Header:
    """Read a file that is a checkpoint or the index of a sharded checkpoint.

    Raises:
        CheckpointError: the file is neither. The message names the file.
    """
    try:
        with files.open(path) as file:
            shards = _shards(file, limits)
            if shards is None:
                return _of_file(file, limits)
        return _read(path, shards, files, limits)
    except CheckpointError as error:
        raise about(path, error) from None


def together(folder: str, names: Iterable[str], files: Files, limits: Limits) -> Header:
    """Join the headers of shards without an index.

    Raises:
        CheckpointError: a shard can't be read, or two shards have a key in common.
    """
    shards: dict[str, str] = {}
    headers = {name: _shard(inside(folder, name), name, files, limits) for name in names}
    for name, header in headers.items():
        for key in _held(header, name):
            if shards.setdefault(key, name) != name:
                raise CheckpointError(
                    f"{escape(key)} is in {escape(shards[key])} and in {escape(name)}: they are not shards"
                )
    return _joined(shards, headers)


def _shards(file: File, limits: Limits) -> dict[str, str] | None:
    """Return key -> file name if the file is an index, else None."""
    if not file.read_at(0, min(64, file.size)).lstrip().startswith(b"{"):
        return None
    if file.size > limits.index and b"weight_map" not in file.read_at(0, min(4096, file.size)):
        return None
    limits.check("index", file.size, f"the index has {file.size} bytes")
    data = file.read_at(0, file.size)
    if b'weight_map"' not in data and not file.path.endswith(_SUFFIX):
        return None  # not a damaged index, but some other file
    content = loads(data, limits, "the index is damaged: {}".format)
    if "weight_map" not in content:
        return None
    shards = content["weight_map"]
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError("the index is damaged: its 'weight_map' is not a table of file names")
    names = dict.fromkeys(shards.values())
    limits.check("tensors", len(shards), "the index names too many tensors")
    limits.check("files", len(names), "the index names too many files")
    for name in names:
        check_inside(name, "the index")
    return shards


def _read(index: str, shards: dict[str, str], files: Files, limits: Limits) -> Header:
    """Join the headers of all shards in the order of the index.

    Keys that the index lacks are included too, because loading shard by shard loads them.
    """
    headers = {
        name: _shard(beside(index, name), name, files, limits) for name in dict.fromkeys(shards.values())
    }
    for key, name in shards.items():
        if key not in _held(headers[name], name):
            raise CheckpointError(f"the index says that {escape(key)} is in {escape(name)}, and it is not")
    held = [(key, name) for name, header in headers.items() for key in _held(header, name)]
    forgotten = {key: name for key, name in held if key not in shards}
    twice = {key: name for key, name in held if shards.get(key, name) != name}
    header = _joined({**shards, **forgotten}, headers)
    remarks = []
    if forgotten:
        key, name, more = _first(forgotten)
        remarks.append(f"the index lacks {key}{more}, which {name} has")
    if twice:
        key, name, more = _first(twice)
        remarks.append(f"{key}{more}, of which the index names another shard, {name} has too")
    return replace(header, remarks=tuple(remarks)) if remarks else header


def _first(places: dict[str, str]) -> tuple[str, str, str]:
    """Describe several keys: the first one with its file, and how many more there are."""
    key, name = next(iter(places.items()))
    return escape(key), escape(name), f" and {len(places) - 1} more keys" if len(places) > 1 else ""


def _held(header: Header, name: str) -> dict[str, object]:
    if not isinstance(header.tree, dict):
        raise CheckpointError(f"the shard {escape(name)} holds no state dict")
    return header.tree


def _joined(shards: dict[str, str], headers: dict[str, Header]) -> Header:
    """Return one header with every key from its shard."""
    tree = Dict()
    storages: dict[str, tuple[Extent, ...]] = {}
    for key, name in shards.items():
        header = headers[name]
        value = _held(header, name)[key]
        if isinstance(value, TensorSpec):
            value = value.within(name)
        tree[key] = value
    for name, header in headers.items():
        storages.update((f"{name}:{storage}", header.storages[storage]) for storage in header.storages)
    unsafe = next((header.unsafe for header in headers.values() if header.unsafe), "")
    kinds = sorted({header.format for header in headers.values()})
    return Header(f"sharded {' and '.join(kinds)}", tree, storages, unsafe)


def _shard(path: str, name: str, files: Files, limits: Limits) -> Header:
    try:
        with files.open(path) as file:
            return _of_file(file, limits)
    except CheckpointError as error:
        raise CheckpointError(f"shard {escape(name)}: {error}") from None


def _of_file(file: File, limits: Limits) -> Header:
    """Read a checkpoint that is a single file; raise CheckpointError if it is something else."""
    known = (safetensors.pytest_ckptcompat_open, torch_zip.read_archive, torch_legacy.pytest_ckptcompat_open)
    for read in known:
        header: Header | None = read(file, limits)
        if header is not None:
            return header
    raise CheckpointError(f"it is {what_it_is(file)}")
