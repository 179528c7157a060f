"""Checkpoints of ``torch.distributed.checkpoint``: a folder with ``.metadata`` and ``*.distcp`` files.

``.metadata`` is a pickle that torch itself would execute. Here the bounded pickle machine reads it. Every
tensor is stored in blocks, and each block is a torch.save archive inside a file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Chunk, TensorSpec, contiguous_stride
from pytest_ckptcompat.files.folders import names_in
from pytest_ckptcompat.files.paths import inside

from .blocks import make_up
from .dcp_objects import read_objects
from .dcp_places import Places, fields, is_sizes
from .pickle_machine import Machine
from .pickle_records import Records
from .pickle_stubs import Branch, Branches, Dict, Stub
from .torch_arguments import dtype_of
from .torch_names import Tensors

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.core.tensor_spec import Extent
    from pytest_ckptcompat.files.files import Files

    from .pickle_stubs import Recognizer

_INDEX = ".metadata"
_EXPECTED = re.compile(
    r"torch\.(distributed\.checkpoint\.\w+(\.\w+)*|serialization\._get_layout|Size|device|\w+)"
    r"|collections\.OrderedDict|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|_io\.BytesIO|builtins\.(set|slice)"
)
_PART = ".distcp"
_OPTIMIZER = re.compile(r"(\w*optim\w*)\.((?:state|param_groups)\..+)", re.DOTALL)
_OBJECT = ".BytesStorageMetadata"
_MOST_PARTS = 100


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: object, files: Files, limits: Limits) -> Header | None:
    """Read a distributed checkpoint, given its folder."""
    if file is not None:
        return None
    names = names_in(path)
    if _INDEX in names:
        return _Reader(path, files, limits).header()
    ranks = [name for name in names if name.endswith(_PART)]
    if ranks:
        raise CheckpointError(
            f"an unfinished save of a distributed checkpoint: there are {len(ranks)} files of ranks "
            f"({escape(min(ranks), 40)}) and no .metadata, which is written last. Save it again, or name an "
            "earlier one"
        )
    return None


class _Reader:
    """A reader for one distributed checkpoint."""

    def __init__(self, folder: str, files: Files, limits: Limits) -> None:
        self._folder = folder
        self._files = files
        self._limits = limits
        self._places = Places(folder, files, limits)
        self._objects: dict[str, object] = {}
        self._fitting: dict[str, set[tuple[int, int]]] = {}
        self._storages: dict[str, tuple[Extent, ...]] = {}

    def header(self) -> Header:
        """Return the header of the whole checkpoint."""
        with self._files.open(inside(self._folder, _INDEX)) as file:
            # Most of it is the positions of blocks, which have a limit of their own.
            self._limits.check("pickle_bytes", file.size // 8, f"its .metadata has {file.size} bytes")
            data = file.read_at(0, file.size)
        tensors = Tensors(self._limits)
        machine = Machine(data, names=tensors.names, limits=self._limits, records=_records())
        try:
            index = machine.load()
        except CheckpointError as error:
            if str(error).startswith("limit exceeded"):
                raise
            raise CheckpointError(f"its .metadata is damaged, or not copied whole: {error}") from None
        if not isinstance(index, Stub):
            raise CheckpointError("its .metadata is not what torch.distributed.checkpoint writes")
        entries, places, paths = fields(index, "state_dict_metadata", "storage_data", "planner_data")
        if not isinstance(entries, dict) or not isinstance(places, dict):
            raise CheckpointError("its .metadata lacks the list of tensors, or of where they are stored")
        for at, place in places.items():
            self._places.add(at, place)
        self._objects = self._read_objects(entries)
        tree = Branch()
        for key, entry in entries.items():
            _put(tree, _path(key, paths), self._entry(key, entry))
        return Header("dcp", _settled(tree), self._storages, _unsafe(machine))

    def _entry(self, key: Any, entry: Any) -> object:
        if not isinstance(key, str):
            raise CheckpointError("its .metadata has a key that is not a string")
        if not isinstance(entry, Stub):
            raise CheckpointError(f"its .metadata has a damaged entry {escape(key)}")
        return self._objects[key] if key in self._objects else self._tensor(key, entry)

    def _read_objects(self, entries: dict[Any, Any]) -> dict[str, object]:
        """Read the plain values, which are stored like tensors."""
        places = {}
        for key, entry in entries.items():
            if isinstance(key, str) and isinstance(entry, Stub) and entry.name.endswith(_OBJECT):
                place = self._places.find(key)
                if place is None:
                    raise CheckpointError(f"its .metadata does not say where {escape(key)} is stored")
                places[key] = place
        return read_objects(places, self._files, self._limits)

    def _tensor(self, key: str, entry: Stub) -> TensorSpec:
        properties, shape, chunks = fields(entry, "properties", "size", "chunks")
        if not is_sizes(shape) or not isinstance(chunks, list):
            raise CheckpointError(f"its .metadata has a damaged entry {escape(key)}")
        self._limits.check("dims", len(shape), f"{escape(key)} has {len(shape)} dimensions")
        try:
            dtype = dtype_of(_dtype(properties))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{escape(key)}: {escape(str(error))}") from None
        self._limits.check("tensors", len(self._storages) + 1, "it holds too many tensors")
        fitting = self._fitting.setdefault(str(shape), set())
        blocks = tuple(self._chunk(key, shape, chunk, fitting) for chunk in chunks)
        self._storages[key] = blocks
        if not make_up(shape, [(block.begin, block.size) for block in blocks]):
            raise CheckpointError(
                f"the blocks of {escape(key)} do not make up a tensor of shape {shape}: some are missing, or "
                "they overlap"
            )
        return TensorSpec(dtype, tuple(shape), contiguous_stride(shape), 0, key)

    def _chunk(self, key: str, shape: tuple[int, ...], chunk: Any, fitting: set[tuple[int, int]]) -> Chunk:
        begin, size = fields(chunk, "offsets", "sizes")
        if (id(begin), id(size)) not in fitting:  # the same two tuples serve many tensors
            fits = is_sizes(begin) and is_sizes(size) and len(begin) == len(size) == len(shape)
            if not fits or any(
                low + length > whole for low, length, whole in zip(begin, size, shape, strict=True)
            ):
                raise CheckpointError(f"a block of {escape(key)} lies outside the tensor")
            fitting.add((id(begin), id(size)))
        place = self._places.find(key, begin)
        if place is None:
            raise CheckpointError(f"its .metadata does not say where a block of {escape(key)} is stored")
        return Chunk(*place, begin, size)


def _records() -> dict[str, Recognizer]:
    """Return recognizers for the objects that an index has for each block (torch 2.0 to 2.13)."""
    checkpoint = "torch.distributed.checkpoint"
    return {
        f"{checkpoint}.metadata.ChunkStorageMetadata": Records(("offsets", "sizes")).take,
        f"{checkpoint}.metadata.MetadataIndex": Records(
            ("fqn", "index", "offset"), ("fqn", "offset", "index")
        ).take,
        f"{checkpoint}.filesystem._StorageInfo": Records(
            ("relative_path", "offset", "length"),
            ("relative_path", "offset", "length", "transform_descriptors"),
        ).take,
    }


def _dtype(properties: Any) -> Any:
    """Return the dtype from a tensor's properties, which are pickled as a tuple or as attributes."""
    if isinstance(properties, Stub) and isinstance(properties.state, tuple) and properties.state:
        return properties.state[0]
    return fields(properties, "dtype")[0]


def _path(key: Any, paths: Any) -> tuple[Any, ...]:
    """Split a key as the planner recorded it. Without a record, split only keys of an optimizer."""
    path = paths.get(key) if isinstance(paths, dict) else None
    if isinstance(path, tuple) and 0 < len(path) <= _MOST_PARTS and not (len(path) == 1 and path[0] == key):
        return path
    flat = _OPTIMIZER.fullmatch(key) if isinstance(key, str) else None
    return flat.groups() if flat else (key,)


def _put(tree: Branch, path: tuple[Any, ...], value: object) -> None:
    """Set a value in nested dicts, and make missing ones."""
    for place, part in enumerate(path):
        if not isinstance(part, (str, int)):
            raise CheckpointError("its .metadata has a path whose parts are not names")
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
    """Restore lists and the integer keys of optimizer state, as torch.save would have them."""
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
