"""The table of a checkpoint: key -> dtype, shape, stride and where the bytes are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1,
    "complex128": 16, "complex64": 8, "complex32": 4, "bcomplex32": 4,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
    "bool": 1,
}  # fmt: skip
"""Bytes of one element of every strided dtype that torch can save, by torch's name without ``torch.``."""


@dataclass(slots=True, unsafe_hash=True)  # not frozen, for the same reason as `TensorSpec`
class Extent:
    """The place of a storage: ``nbytes`` bytes at ``offset`` of ``file``, a path or URL."""

    file: str
    offset: int
    nbytes: int


@dataclass(slots=True, unsafe_hash=True)
class Member(Extent):
    """The bytes of a zip member. Its local header, whose length is not known yet, is at ``offset``.

    Attributes:
        name: the name of the member.
        packed: its compressed size in bytes if it is deflated, else None.
    """

    name: str
    packed: int | None = None


@dataclass(slots=True, unsafe_hash=True)
class Chunk(Extent):
    """A block of a tensor in an archive of its own, written with torch.save at ``offset``.

    Attributes:
        begin: the index of the block's first element in every dimension of the tensor.
        size: the shape of the block.
    """

    begin: tuple[int, ...]
    size: tuple[int, ...]


@dataclass(slots=True, unsafe_hash=True)
class PlainChunk(Chunk):
    """A block of a tensor whose values are stored contiguously at ``offset``."""


@dataclass(slots=True, unsafe_hash=True)  # frozen would make creating 100,000 of them five times slower
class TensorSpec:
    """One row of the table. `Header.storages` says where its storage is.

    Never change a spec: make a new one with ``dataclasses.replace``.

    Attributes:
        dtype: torch's name without ``torch.``.
        shape: sizes, in elements.
        stride: in elements; that of a contiguous tensor if the format stores none.
        offset: the position of the first element in its storage, in elements.
        storage: the name of the storage. Two keys with equal storage, offset, shape and stride are tied.
            Empty if there are no bytes to read (a lock, an unusual layout).
        note: why the values have no plain layout (``"quantized"``, ``"sparse"``, ...); else ``""``.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: str = ""
    note: str = ""

    @property
    def numel(self) -> int:
        """The number of elements (1 for a scalar)."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values, laid out contiguously."""
        return self.numel * ITEMSIZE.get(self.dtype, 0)

    @property
    def span(self) -> int:
        """The number of storage elements from the tensor's first to its last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def within(self, file: str) -> TensorSpec:
        """Return the same tensor with the file's name put before the name of its storage."""
        return replace(self, storage=f"{file}:{self.storage}") if self.storage else self


@dataclass(slots=True, unsafe_hash=True)
class LearnedSpec(TensorSpec):
    """A tensor with what torch keeps beside its values.

    Attributes:
        parameter: whether it is an ``nn.Parameter``.
        requires_grad: whether it requires a gradient.
    """

    parameter: bool = False
    requires_grad: bool = False


@dataclass(slots=True, unsafe_hash=True)
class CompositeSpec(TensorSpec):
    """A tensor without a plain layout. Its values follow from other tensors and numbers.

    Attributes:
        kind: ``"quantized"``, ``"sparse"``, ``"nested"``, ``"meta"``, ``"conjugated"``, or ``"DTensor"``.
        parts: the tensors and numbers, in the order in which torch's function for the kind takes them.
    """

    kind: str = ""
    parts: tuple[object, ...] = field(default=(), compare=False, repr=False)

    def within(self, file: str) -> TensorSpec:
        """Do the same for the tensor and its parts."""
        parts = (part.within(file) if isinstance(part, TensorSpec) else part for part in self.parts)
        storage = f"{file}:{self.storage}" if self.storage else ""
        return replace(self, storage=storage, parts=tuple(parts))


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the stride, in elements, of a contiguous tensor of this shape, as torch computes it."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def shown(shape: tuple[int, ...], dtype: str = "") -> str:
    """Return a shape and dtype as reports show them: ``(4, 256) f32``, ``(512, 512) f8_e4m3fn``.

    The dtype may begin with ``torch.``.
    """
    return f"{shape} {_short(dtype.removeprefix('torch.'))}".rstrip()


def described(value: Any) -> str:
    """Return `shown` for a tensor or a spec, and ``""`` for anything else."""
    shape = getattr(value, "shape", None)
    return "" if shape is None else shown(tuple(shape), str(value.dtype))


def _short(dtype: str) -> str:
    for long, short in (("bfloat", "bf"), ("float", "f"), ("complex", "c"), ("uint", "u"), ("int", "i")):
        if dtype.startswith(long):
            return short + dtype.removeprefix(long)
    return dtype
