"""Objects and tensors in the form that the writers take. Values are read when they are written."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import CompositeSpec, TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Global, Stub
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import memory

from .composite import PLAIN_VALUES
from .objects import Maker, UnknownError, plain_key
from .reader import memory_of, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

_PIECE = 1 << 24
_LEFT_OUT = object()


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor to be written.

    Attributes:
        shape: sizes, in elements.
        dtype: the dtype of the tensor.
        read: returns the values. Called once for every `same`, when they are written.
        same: equal for tensors that share their memory and are written once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    same: Hashable

    @classmethod
    def of(cls, tensor: torch.Tensor, owner: Hashable = None) -> Value:
        """Wrap a tensor in memory, or one whose values are read when it is written.

        Views with the same memory, shape and stride are written once if they have the same owner.
        """
        return cls(tuple(tensor.shape), tensor.dtype, lambda: materialise(tensor), (memory(tensor), owner))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return self.numel * self.dtype.itemsize

    def pieces(self) -> Iterator[memoryview]:
        """Yield the contiguous values in pieces of at most 16 MiB, each valid until the next is taken."""
        tensor = self.read().detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(
                f"announced as {self.shape} {self.dtype}, read as {tuple(tensor.shape)} {tensor.dtype}"
            )
        whole = memory_of(tensor)
        for offset in range(0, self.nbytes, _PIECE):
            yield whole[offset : offset + _PIECE]


class _Set(set[Any]):
    """A set whose pickle does not depend on the hashes of texts, which differ between processes."""

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return set, (sorted(self, key=repr),)


class Content(Maker):
    """A converter from the tree of a header to content that ``torch.load(weights_only=True)`` can read.

    Objects of classes are left out, and so are quantized, sparse and nested tensors. Dicts of unknown kinds
    are written as plain ones.

    Args:
        read: reads the values of a tensor, when they are written.

    Attributes:
        left_out: what is left out, with its path, safe to print.
    """

    def __init__(self, read: Callable[[TensorSpec], torch.Tensor]) -> None:
        super().__init__(read)
        self.left_out: list[str] = []
        self._path: list[str] = []
        self._alive: list[Any] = []  # so that no id is used twice

    def instead(self, node: Any, content: Any) -> None:
        """Write `content` in place of a part."""
        self._done[id(node)] = content

    def leave_out(self, node: Any) -> None:
        """Don't write a part."""
        self._done[id(node)] = _LEFT_OUT

    def of(self, node: Any) -> Any:
        """Return the content of a part and everything in it. Shared parts stay shared.

        Raises:
            ValueError: the part is nested too deeply to be written.
        """
        self._alive.append(node)
        try:
            return self.made(node)
        except RecursionError:
            raise ValueError("the checkpoint is nested too deeply to be written") from None

    def _new(self, node: Any) -> Any:
        try:
            made = super()._new(node)
        except UnknownError:
            return self._without(node)
        if isinstance(made, torch.Tensor):  # a parameter without a shape
            return self._without(node)
        return _Set(made) if isinstance(made, set) else made

    def _without(self, node: Any) -> object:
        path = "".join(self._path).removeprefix(".")
        what = (
            f"{escape(node.note)} tensors are not written"
            if isinstance(node, TensorSpec)
            else "an object of a class"
        )
        self.left_out.append(f"{path} is left out: {what}")
        return _LEFT_OUT

    def _tensor(self, node: TensorSpec | torch.Tensor) -> Value:
        if isinstance(node, torch.Tensor):
            return Value.of(node)
        if node.note and not (isinstance(node, CompositeSpec) and node.kind in PLAIN_VALUES):
            raise UnknownError(node.note)
        same = (node.storage or id(node), node.offset, node.shape, node.stride, node.dtype)
        return Value(node.shape, torch_dtype(node.dtype), lambda: self._read(node), same)

    def _empty(self, kind: str) -> dict[Any, Any]:
        try:
            return super()._empty(kind)
        except UnknownError:
            return {}

    def _entries(self, node: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        for key, value in node.items():
            self._path.append(".(a key)" if isinstance(key, (Global, Stub)) else f".{escape(str(key), 60)}")
            try:
                name, made = plain_key(key), self.made(value)
            except UnknownError:  # raised for the key
                made = self._without(key)
            self._path.pop()
            if made is not _LEFT_OUT:
                yield name, made

    def _elements(self, node: Sequence[Any]) -> Iterator[Any]:
        for index, value in enumerate(node):
            self._path.append(f"[{index}]")
            made = self.made(value)
            self._path.pop()
            yield None if made is _LEFT_OUT else made
