"""Open a checkpoint: find its format and its state dict, and read values on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import AmbiguousError, CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.limits import DEFAULT, Limits
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.files.paths import about, name_of

from .candidates import survey
from .contents import Contents, read_contents
from .entries import flatten, metadata_of, own_keys
from .rank_part import check_file, check_whole
from .wrappers import find_state_dict, state_dict_at

if TYPE_CHECKING:
    import os
    from collections import OrderedDict

    import torch

    from .values import Values


_MOST_CANDIDATES = 64


def open_checkpoint(
    path: str | os.PathLike[str], state_dict_key: str | None = None, *, limits: Limits = DEFAULT
) -> Checkpoint:
    """Open a checkpoint and read its header. No values are read, and torch is not imported.

    Args:
        path: a file, the folder or index of a sharded or distributed checkpoint, or an fsspec URL.
        state_dict_key: the dotted path to the state dict. None: find it.
        limits: limits on what a header may hold.

    Raises:
        CheckpointError: the checkpoint can't be read. The message says why and what to do.
    """
    return checkpoint(read_contents(path, limits=limits), state_dict_key)


def checkpoint(contents: Contents, state_dict_key: str | None = None) -> Checkpoint:
    """Pick the state dict of a checkpoint whose header was read.

    Raises:
        CheckpointError: there is no state dict, or (`AmbiguousError`) there are several equally good ones.
    """
    tree = contents.header.tree
    try:
        check_file(tree, contents.path)
        if state_dict_key is None:
            key, node = find_state_dict(tree, contents.limits)
        else:
            key, node = state_dict_key, state_dict_at(tree, state_dict_key)
        return _picked(contents, key, node)
    except CheckpointError as error:
        told = about(contents.path, error)
        if isinstance(told, AmbiguousError):
            told.contents = contents
        raise told from None


def outer_object(contents: Contents) -> Checkpoint:
    """Return a `Checkpoint` without a state dict, such as a file with optimizer state, for its `wrapper`."""
    return Checkpoint(contents, "", {}, None)


def candidates(contents: Contents) -> list[Checkpoint]:
    """Return every state dict in a checkpoint, also those that several inner ones form together."""
    found: list[Checkpoint] = []
    for each in islice(survey(contents.header.tree, contents.limits).walk(), _MOST_CANDIDATES):
        if each.own or len(each.inner) > 1:
            with suppress(CheckpointError):
                found.append(_picked(contents, each.path, own_keys(each.node)))
    return found


def _picked(contents: Contents, key: str, node: object) -> Checkpoint:
    entries = flatten(node, contents.limits)
    if not any(isinstance(value, TensorSpec) for value in entries.values()):
        raise CheckpointError(f"{escape(key)!r} holds no tensor" if key else "there is no tensor in it")
    check_whole(entries, contents.path)
    return Checkpoint(contents, key, entries, metadata_of(node))


class Checkpoint(Mapping[str, TensorSpec]):
    """A state dict on disk: key -> dtype, shape, stride. Values are read on demand.

    Attributes:
        path: the path of the file or folder, as it was given.
        state_dict_key: the dotted path to the state dict, found or given; ``""`` for the outermost object.
        metadata: torch's ``_metadata`` of the state dict, or None.
        entries: key -> `TensorSpec`, or a plain value if it is not a tensor; in the file's order.
        contents: the header from which this state dict was picked.
    """

    def __init__(
        self,
        contents: Contents,
        state_dict_key: str,
        entries: dict[str, object],
        metadata: dict[str, object] | None,
    ) -> None:
        self.path = contents.path
        self.state_dict_key = state_dict_key
        self.metadata = metadata
        self.entries = entries
        self.contents = contents
        self._specs = {key: value for key, value in entries.items() if isinstance(value, TensorSpec)}

    def __getitem__(self, key: str) -> TensorSpec:
        return self._specs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return f"<Checkpoint {self.name}: {self.format}, {len(self)} tensors>"

    @property
    def name(self) -> str:
        """The last part of the path, safe to print."""
        return name_of(self.path)

    @property
    def format(self) -> str:
        """The short name of the format."""
        return self.contents.header.format

    @property
    def valueless(self) -> str:
        """Why there are no values to read, or ``""``."""
        return self.contents.valueless

    @property
    def objects(self) -> dict[str, object]:
        """Key -> plain value for entries that are not tensors (an ``_extra_state``)."""
        return {key: value for key, value in self.entries.items() if not isinstance(value, TensorSpec)}

    @property
    def ties(self) -> list[tuple[str, ...]]:
        """Groups of keys that share storage, offset, shape and stride, in the file's order."""
        tied: dict[tuple[object, ...], list[str]] = {}
        for key, spec in self._specs.items():
            if spec.storage:
                tied.setdefault((spec.storage, spec.offset, spec.shape, spec.stride), []).append(key)
        return [tuple(keys) for keys in tied.values() if len(keys) > 1]

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors. Tied ones count once."""
        twice = sum(self[key].nbytes for keys in self.ties for key in keys[1:])
        return sum(spec.nbytes for spec in self._specs.values()) - twice

    @property
    def unsafe(self) -> str:
        """Why ``torch.load(weights_only=True)`` would refuse the file, or ``""``."""
        return self.contents.header.unsafe

    @property
    def wrapper(self) -> object:
        """The outermost object as plain data: dicts, lists, numbers, strings, `Stub`, `TensorSpec`.

        For a lock, the metadata that it stores with the table under ``state_dict``, or only the table if it
        stores no metadata.
        """
        header = self.contents.header
        return {**header.metadata, "state_dict": header.tree} if header.metadata else header.tree

    def at(self, state_dict_key: str | None) -> Checkpoint:
        """Return the state dict at another key of the same file, or this one for None."""
        if state_dict_key is None or state_dict_key == self.state_dict_key:
            return self
        return checkpoint(self.contents, state_dict_key)

    @property
    def bytes_read(self) -> int:
        """The number of bytes read from the files so far."""
        return self.contents.files.bytes_read

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show on the terminal how much of all values has been read inside the block.

        Raises:
            CheckpointError: a remote file changed meanwhile.
        """
        with self.contents.files.progress(self.name, self.nbytes):
            yield
        self.contents.files.check_unchanged()

    # -- values; torch is imported here --------------------------------------------------------------------

    def tensor(self, key: str) -> torch.Tensor:
        """Read the values of one key into new memory.

        Raises:
            KeyError: there is no such tensor.
            CheckpointError: the values can't be read.
        """
        return self.materialise(self[key])

    def materialise(self, spec: TensorSpec) -> torch.Tensor:
        """Read the values of any tensor in `wrapper`; errors as for `tensor`."""
        tensor = self._one_by_one.tensor(spec)
        self.contents.files.check_unchanged()
        return tensor

    def state_dict(self) -> OrderedDict[str, Any]:
        """Read all values, as ``torch.load`` does: tied tensors share storage, and ``_metadata`` is set."""
        return self._values.state_dict()

    def meta(self) -> OrderedDict[str, Any]:
        """Return the state dict on the meta device, with shapes, strides, dtypes and ties."""
        return self._values.meta()

    def stored(self, *, once: bool = False) -> OrderedDict[str, Any]:
        """Return the state dict with its values still on disk. They are read when copied or looked at.

        Args:
            once: read each value once. Afterwards it is taken from where it was copied, or from memory in
                which it is kept, up to a quarter of the free memory.
        """
        return self._values.stored(once=once)

    @cached_property
    def _values(self) -> Values:
        from .values import Values

        return Values(self.contents, self.entries, self.metadata)

    @cached_property
    def _one_by_one(self) -> Values:
        """A reader for single tensors."""
        from .values import Values

        return Values(self.contents, self.entries, one_by_one=True)
