"""Pickles of NumPy arrays, as in detectron2's model zoo. The arrays are treated as tensors.

torch.load does not read them, and other readers unpickle the file. Here the arrays are only located.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, Extent, TensorSpec, contiguous_stride

from .pickle_machine import Machine
from .pickle_names import PlainNames
from .pickle_payloads import Payload, without_payloads
from .pickle_stubs import Dict, Stub, is_array

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File

_BEGINNING = re.compile(rb"\x80[\x02-\x05]")
_LOOKED_AT = 1 << 16
_MOST = 2_000_000
"""The largest number of operations, and of bytes without the payloads: about 50 for an array."""

_DEEPEST = 16
_DTYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "c8": "complex64", "c16": "complex128",
    "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8", "b1": "bool",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
}  # fmt: skip
UNSAFE = "torch.load refuses it: it is a plain pickle of NumPy arrays, which its readers have to trust"


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read a plain pickle that holds arrays."""
    head = b"" if file is None else file.read_at(0, min(_LOOKED_AT, file.size))
    if file is None or not _BEGINNING.match(head) or b"numpy" not in head:
        return None
    data = without_payloads(file, min(_MOST, limits.pickle_bytes))
    if data is None:
        return None
    names = {**PlainNames(limits).names, "_codecs.encode": _encoded}
    machine = Machine(data, names=names, persistent=_payload, limits=limits)
    reader = _Arrays(file, limits)
    tree = reader.of(machine.load(), _DEEPEST)
    if any(name.startswith("torch.") for name in machine.globals):
        return None  # its tensors are not read
    return Header("pickled arrays", tree, reader.storages, UNSAFE) if reader.storages else None


def _payload(reference: Any) -> Payload:
    match reference:
        case (int(offset), int(nbytes)):
            return Payload(offset, nbytes)
    raise ValueError("a persistent id has no meaning here")


def _encoded(args: tuple[Any, ...]) -> object:
    """``_codecs.encode(text, "latin1")``: bytes stored as text. Return the text unchanged."""
    return args[0] if args else b""


class _Arrays:
    """A converter from the arrays of a tree to tensors.

    Attributes:
        storages: one storage for each array.
    """

    def __init__(self, file: File, limits: Limits) -> None:
        self.storages: dict[str, tuple[Extent, ...]] = {}
        self._file = file
        self._limits = limits
        self._seen = 0

    def of(self, node: Any, deepest: int) -> object:
        """Return the tree with a `TensorSpec` for each array. Too deeply nested parts stay as they are."""
        self._seen += 1
        self._limits.check("tensors", self._seen // 4, "the pickle holds too many objects")
        if is_array(node):
            return self._array(node)
        if isinstance(node, Dict) and deepest:
            made = Dict(node.kind)
            for key, value in node.items():
                made[key] = self.of(value, deepest - 1)
            return made
        if type(node) is list and deepest:
            return [self.of(each, deepest - 1) for each in node]
        return node

    def _array(self, node: Stub) -> object:
        """Return a `TensorSpec` for an array with a known dtype, else the node itself."""
        parts = node.state
        if node.name.endswith("_frombuffer"):
            parts = _reordered(node.args)
        if type(parts) is not tuple or len(parts) != _PARTS:
            return node
        _, shape, kind, order, data = parts
        dtype = _dtype_of(kind)
        if not dtype or not isinstance(data, Payload) or not _is_shape(shape, self._limits.dims):
            return node
        fortran = order is True or order == "F"
        stride = contiguous_stride(shape[::-1])[::-1] if fortran else contiguous_stride(shape)
        key = str(data.offset)
        spec = TensorSpec(dtype, shape, stride, 0, key)
        if spec.nbytes != data.nbytes:
            raise CheckpointError(f"an array of shape {shape} has {data.nbytes} bytes: it is damaged")
        self.storages[key] = (Extent(self._file.path, data.offset, data.nbytes),)
        return spec


_PARTS = 5
"""Version, shape, dtype, order and bytes."""


def _reordered(arguments: Any) -> Any:
    """Reorder the arguments of ``_frombuffer(bytes, dtype, shape, order)`` like an array's state."""
    match arguments:
        case (data, kind, shape, order):
            return None, shape, kind, order, data
    return None


def _dtype_of(kind: Any) -> str:
    """Return torch's name of a little-endian NumPy dtype, or ``""`` for any other."""
    match kind:
        case Stub(name="numpy.dtype", args=(str(code), *_), state=state):
            order = state[1] if type(state) is tuple and len(state) > 1 else "<"
            dtype = _DTYPES.get(code.lstrip("<|="), "")
            return dtype if dtype and (order in ("<", "|", "=") or ITEMSIZE[dtype] == 1) else ""
    return ""


def _is_shape(shape: Any, dims: int) -> bool:
    return (
        type(shape) is tuple
        and len(shape) <= dims
        and all(type(size) is int and 0 <= size < 1 << 62 for size in shape)
    )
