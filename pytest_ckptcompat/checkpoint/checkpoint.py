"""Opening a checkpoint: which format, which state dict inside, values on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

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
    """Open a checkpoint by its header; no value is read, and torch is not imported.

    Args:
        path: a file, the folder or the index of a sharded or distributed checkpoint, or an fsspec URL.
        state_dict_key: dotted path to the state dict inside; without it the usual wrappers are tried.
        limits: caps on what a header may hold.

    Raises:
        CheckpointError: it can't be read; the text says why and what to do.
    """
    return checkpoint(read_contents(path, limits=limits), state_dict_key)


def checkpoint(contents: Contents, state_dict_key: str | None = None) -> Checkpoint:
    """Pick the state dict.

    Args:
        contents: a header.
        state_dict_key: dotted path to it; without it the usual wrappers are tried.

    Raises:
        CheckpointError: there is none, or (`AmbiguousError`) there are several that are equally good.
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
    """What may hold no state dict, such as a file of an optimizer's state, for its `wrapper`."""
    return Checkpoint(contents, "", {}, None)


def candidates(contents: Contents) -> list[Checkpoint]:
    """Every state dict in a checkpoint that may be meant, or that several of them make together."""
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
    """A state dict on disk: key -> dtype, shape, stride; values are read when they are asked for.

    Attributes:
        path: of the file or folder, as it was given.
        state_dict_key: dotted path to the state dict inside, found or given; ``""`` for the outer object.
        metadata: torch's ``_metadata`` of the state dict, or None.
        entries: key -> `TensorSpec`, or a plain value where it is not a tensor; in the file's order.
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
        self._contents = contents
        only_tensors = set(map(type, entries.values())) == {TensorSpec}
        self._specs: Mapping[str, TensorSpec] = (
            cast("dict[str, TensorSpec]", entries)
            if only_tensors
            else {key: value for key, value in entries.items() if isinstance(value, TensorSpec)}
        )

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
        """Last part of the path, safe to print."""
        return name_of(self.path)

    @property
    def format(self) -> str:
        """Short name of the format."""
        return self._contents.header.format

    @property
    def valueless(self) -> str:
        """Why there are no values to read, or ``""``."""
        return self._contents.valueless

    @property
    def objects(self) -> dict[str, object]:
        """Key -> plain value of what is not a tensor in the state dict (an ``_extra_state``)."""
        return {key: value for key, value in self.entries.items() if not isinstance(value, TensorSpec)}

    @property
    def ties(self) -> list[tuple[str, ...]]:
        """Keys that share storage, offset, shape and stride, in the file's order."""
        tied: dict[tuple[object, ...], list[str]] = {}
        for key, spec in self._specs.items():
            if spec.storage:
                tied.setdefault((spec.storage, spec.offset, spec.shape, spec.stride), []).append(key)
        return [tuple(keys) for keys in tied.values() if len(keys) > 1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; of tied ones once."""
        twice = sum(self[key].nbytes for keys in self.ties for key in keys[1:])
        return sum(spec.nbytes for spec in self._specs.values()) - twice

    @property
    def unsafe(self) -> str:
        """Why ``torch.load(weights_only=True)`` would refuse the file, or ``""``."""
        return self._contents.header.unsafe

    @property
    def wrapper(self) -> object:
        """The whole outer object as plain data: dicts, lists, numbers, strings, `Stub`, `TensorSpec`.

        Of a lock it is the metadata that it keeps, with the table as ``state_dict``; the table alone where
        there is none.
        """
        header = self._contents.header
        return {**header.metadata, "state_dict": header.tree} if header.metadata else header.tree

    @property
    def contents(self) -> Contents:
        """The header that this state dict was picked from."""
        return self._contents

    def at(self, state_dict_key: str | None) -> Checkpoint:
        """The state dict at another key of the same file; itself for None.

        Raises:
            CheckpointError: there is none at that key.
        """
        if state_dict_key is None or state_dict_key == self.state_dict_key:
            return self
        return checkpoint(self._contents, state_dict_key)

    @property
    def bytes_read(self) -> int:
        """Bytes really read from the file so far."""
        return self._contents.files.bytes_read

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show, where somebody watches, how much of all values was read inside.

        Raises:
            CheckpointError: a remote file has changed meanwhile.
        """
        with self._contents.files.progress(self.name, self.nbytes):
            yield
        self._contents.files.check_unchanged()

    # -- values; torch is imported here --------------------------------------------------------------------

    def tensor(self, key: str) -> torch.Tensor:
        """The values of one key, read now, in memory of their own.

        Raises:
            KeyError: there is no such tensor.
            CheckpointError: the values can't be read.
        """
        return self.materialise(self[key])

    def materialise(self, spec: TensorSpec) -> torch.Tensor:
        """The values of any tensor of `wrapper`; errors as for `tensor`."""
        tensor = self._one_by_one.tensor(spec)
        self._contents.files.check_unchanged()
        return tensor

    def state_dict(self) -> OrderedDict[str, Any]:
        """All values, equal to what ``torch.load`` gives: ties share storage, ``_metadata`` is set."""
        return self._values.state_dict(self.entries, self.metadata)

    def meta(self) -> OrderedDict[str, Any]:
        """The state dict on the meta device: shapes, strides, dtypes and ties; nothing is read."""
        return self._values.meta(self.entries, self.metadata)

    def stored(self, *, once: bool = False) -> OrderedDict[str, Any]:
        """The state dict with its values still on disk: each is read where it is copied to or looked at.

        Args:
            once: read each value once. Afterwards it is taken from where it was copied to, or from memory
                that is held for it, up to a quarter of what is free.
        """
        return self._values.stored(self.entries, self.metadata, once=once)

    @cached_property
    def _values(self) -> Values:
        from .values import Values

        return Values(self._contents)

    @cached_property
    def _one_by_one(self) -> Values:
        """Reads what is asked for tensor by tensor."""
        from .values import Values

        values = Values(self._contents)
        values.expect(self.entries)
        return values
