"""Checkpoints of ``torch.distributed.checkpoint``: a folder with ``.metadata`` and ``*.distcp`` files.

``.metadata`` is a pickle that torch itself would execute; here it goes through the bounded machine. Every
tensor is stored in blocks, each an archive of torch.save somewhere in a file.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Chunk, TensorSpec, contiguous_stride
from pytest_ckptcompat.files.file import Part
from pytest_ckptcompat.files.folders import names_in
from pytest_ckptcompat.files.paths import inside

from .pickle_machine import Machine
from .pickle_stubs import Branch, Branches, Dict, Global, Stub
from .sharded import check_inside
from .torch_arguments import dtype_of
from .torch_names import Tensors
from .torch_zip import read_archive

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.core.tensor_spec import Extent
    from pytest_ckptcompat.files.files import Files

_INDEX = ".metadata"
_EXPECTED = re.compile(
    r"torch\.(distributed\.checkpoint\.\w+(\.\w+)*|serialization\._get_layout|Size|device|\w+)"
    r"|collections\.OrderedDict|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|_io\.BytesIO|builtins\.(set|slice)"
)
_SMALL = 1 << 20
_MOST_OBJECTS = 10_000
_MOST_PARTS = 100
_UNREAD = "an object that was not read"


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: object, files: Files, limits: Limits) -> Header | None:
    """Read a distributed checkpoint by its folder."""
    if file is not None or _INDEX not in names_in(path):
        return None
    return _Reader(path, files, limits).header()


class _Reader:
    """Reads one distributed checkpoint."""

    def __init__(self, folder: str, files: Files, limits: Limits) -> None:
        self._folder = folder
        self._files = files
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._objects = 0
        self._places: dict[str, tuple[str, int, int]] = {}
        self._storages: dict[str, tuple[Extent, ...]] = {}

    def header(self) -> Header:
        """The table of the whole checkpoint."""
        with self._files.open(inside(self._folder, _INDEX)) as file:
            self._limits.check("pickle_bytes", file.size, f"its .metadata has {file.size} bytes")
            data = file.read_at(0, file.size)
        tensors = Tensors(self._limits)
        machine = Machine(data, names=tensors.names, limits=self._limits)
        index = machine.load()
        if not isinstance(index, Stub):
            raise CheckpointError("its .metadata is not what torch.distributed.checkpoint writes")
        parts = [
            index.attributes.get(name) for name in ("state_dict_metadata", "storage_data", "planner_data")
        ]
        entries, places, paths = parts
        if not isinstance(entries, dict) or not isinstance(places, dict):
            raise CheckpointError("its .metadata lacks the list of tensors, or of where they are stored")
        for at, place in places.items():
            self._remember(at, place)
        tree = Branch()
        for key, entry in entries.items():
            path = paths.get(key) if isinstance(paths, dict) else None
            if not isinstance(path, tuple) or not 0 < len(path) <= _MOST_PARTS:
                path = (key,)
            _put(tree, path, self._entry(key, entry))
        return Header("dcp", _settled(tree), self._storages, _unsafe(machine))

    def _remember(self, at: Any, place: Any) -> None:
        """Where one block or object is stored: file, offset and length, by its key and its offset."""
        match _fields(at, "fqn"), _fields(place, "relative_path", "offset", "length"):
            case [str(key)], [str(name), int(offset), int(length)] if offset >= 0 and length >= 0:
                pass
            case _:
                raise CheckpointError("its .metadata has a damaged entry of where something is stored")
        check_inside(name, "its .metadata")
        if place.attributes.get("transform_descriptors"):
            raise CheckpointError("its values are compressed or encrypted by an extension, which is not read")
        if offset + length > self._size(name):
            raise CheckpointError(
                f"{escape(name)} is truncated: it should have {offset + length} bytes or more"
            )
        self._places[_spot(key, at.attributes.get("offset"))] = name, offset, length

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            self._limits.check("files", len(self._sizes) + 1, "its .metadata names too many files")
            with self._files.open(self._path(name)) as file:
                self._sizes[name] = file.size
        return self._sizes[name]

    def _path(self, name: str) -> str:
        return inside(self._folder, name)

    def _entry(self, key: Any, entry: Any) -> object:
        if not isinstance(key, str):
            raise CheckpointError("its .metadata has a key that is no string")
        if not isinstance(entry, Stub):
            raise CheckpointError(f"its .metadata has a damaged entry {escape(key)}")
        if entry.name.endswith(".BytesStorageMetadata"):
            return self._object(key)
        return self._tensor(key, entry)

    def _tensor(self, key: str, entry: Stub) -> TensorSpec:
        properties, shape, chunks = _fields(entry, "properties", "size", "chunks")
        if not _is_sizes(shape) or not isinstance(chunks, list):
            raise CheckpointError(f"its .metadata has a damaged entry {escape(key)}")
        self._limits.check("dims", len(shape), f"{escape(key)} has {len(shape)} dimensions")
        try:
            dtype = dtype_of(_dtype(properties))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{escape(key)}: {escape(str(error))}") from None
        self._limits.check("tensors", len(self._storages) + 1, "it holds too many tensors")
        self._storages[key] = tuple(self._chunk(key, shape, chunk) for chunk in chunks)
        if sum(prod(chunk.size) for chunk in self._storages[key] if isinstance(chunk, Chunk)) != prod(shape):
            raise CheckpointError(f"the blocks of {escape(key)} do not make up a tensor of shape {shape}")
        return TensorSpec(dtype, shape, contiguous_stride(shape), 0, key)

    def _chunk(self, key: str, shape: tuple[int, ...], chunk: Any) -> Chunk:
        begin, size = _fields(chunk, "offsets", "sizes")
        fits = _is_sizes(begin) and _is_sizes(size) and len(begin) == len(size) == len(shape)
        if not fits or any(
            low + length > whole for low, length, whole in zip(begin, size, shape, strict=True)
        ):
            raise CheckpointError(f"a block of {escape(key)} lies outside the tensor")
        place = self._places.get(_spot(key, begin))
        if place is None:
            raise CheckpointError(f"its .metadata does not say where a block of {escape(key)} is stored")
        name, offset, length = place
        return Chunk(self._path(name), offset, length, begin, size)

    def _object(self, key: str) -> object:
        """A plain value, which is stored like a tensor; read where that is cheap."""
        place = self._places.get(_spot(key, None))
        if place is None:
            raise CheckpointError(f"its .metadata does not say where {escape(key)} is stored")
        name, offset, length = place
        self._objects += 1
        with self._files.open(self._path(name)) as file:
            if length > _SMALL or file.remote or self._objects > _MOST_OBJECTS:
                return Stub(Global(_UNREAD))
            header = read_archive(Part(file, offset, length), self._limits)
        return Stub(Global(_UNREAD)) if header is None or header.storages else header.tree


def _fields(stub: Any, *names: str) -> list[Any]:
    attributes = stub.attributes if isinstance(stub, Stub) else {}
    return [attributes.get(name) for name in names]


def _spot(key: str, offset: Any) -> str:
    """One text for a key and an offset; a tuple from a file is never hashed."""
    return f"{key}\0{','.join(map(str, offset))}" if _is_sizes(offset) else key


def _is_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _MOST_PARTS
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def _dtype(properties: Any) -> Any:
    """The dtype in a tensor's properties, which are pickled as a tuple, or as attributes."""
    if isinstance(properties, Stub) and isinstance(properties.state, tuple) and properties.state:
        return properties.state[0]
    return _fields(properties, "dtype")[0]


def _put(tree: Branch, path: tuple[Any, ...], value: object) -> None:
    """Set a value deep in nested dicts, which are made on the way."""
    for place, part in enumerate(path):
        if not isinstance(part, (str, int)):
            raise CheckpointError("its .metadata has a path whose parts are no names")
        last = place == len(path) - 1
        inner = tree.get(part)
        if inner is None:
            inner = value if last else Branch()
            tree.put(part, inner)
        elif last or not isinstance(inner, Branch):
            raise CheckpointError(f"its .metadata puts two things at {escape('.'.join(map(str, path)))}")
        if isinstance(inner, Branch):
            tree = inner


def _settled(node: object) -> object:
    """The tree with lists where there were lists, and optimizer state by number, as torch.save has it."""
    if not isinstance(node, Branch):
        return node
    settled = Branch()
    for key, part in node.items():
        settled.put(key, _settled(part))
    if list(settled) == list(range(len(settled))):
        return Branches(settled.values())
    state = settled.get("state")
    if "param_groups" in settled and isinstance(state, Dict) and all(str(key).isdecimal() for key in state):
        numbered = Branch()
        for key, part in state.items():
            numbered.put(int(str(key)), part)
        settled.put("state", numbered)
    return settled


def _unsafe(machine: Machine) -> str:
    foreign = [name for name in machine.globals if not _EXPECTED.fullmatch(name)]
    if not foreign:
        return ""
    return f"torch.distributed.checkpoint would run what its .metadata names: {escape(foreign[0], 80)}"
