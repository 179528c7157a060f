"""What torch's own names in a pickle mean: storages, and the functions that lay tensors over them.

Read from ``torch/_utils.py`` and ``torch/serialization.py`` of torch 1.0 to 2.14.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.limits import exceeded
from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, TensorSpec, contiguous_stride

from .pickle_names import PlainNames
from .pickle_stubs import Global, Storage, Stub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.core.limits import Limits

STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8", "QInt32Storage": "qint32", "QUInt8Storage": "quint8",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
"""Element type of a storage class; an untyped one is bytes, and the tensor over it names its dtype."""

QUANTIZED = {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
"""Bytes per element of the quantized dtypes, which have no plain layout for us."""

_BIGGEST = (1 << 63) - 1
_LONGEST_KEY = 4096
_ENDLESS = Storage("", "uint8", 1, _BIGGEST)
_PLAIN_TYPES = {
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch._tensor.Tensor",
}


class Tensors:
    """Gives the meaning of torch's names while a pickle is run.

    Args:
        limits: caps.
        untyped: whether storages without a dtype may occur; torch.load fails on them in the legacy layout.

    Attributes:
        storages: every storage that the pickle refers to, by its key.
        names: name -> what is done in place of calling it; for `Machine`.
    """

    def __init__(self, limits: Limits, *, untyped: bool = True) -> None:
        self.storages: dict[str, Storage] = {}
        self._untyped = untyped
        self._kinds: dict[Global, tuple[str, int]] = {}
        self._limits = limits
        self._count = 0
        self.names: Mapping[str, Callable[[tuple[Any, ...]], object]] = {
            **PlainNames(limits).names,
            "torch._utils._rebuild_tensor": self._strided,
            "torch._utils._rebuild_tensor_v2": self._strided,
            "torch._utils._rebuild_tensor_v3": self._strided_untyped,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._utils._rebuild_qtensor": self._quantized,
            "torch._utils._rebuild_sparse_tensor": self._sparse,
            "torch._utils._rebuild_sparse_csr_tensor": self._sparse,
            "torch._utils._rebuild_nested_tensor": self._nested,
            "torch._utils._rebuild_meta_tensor_no_storage": self._meta,
            "torch._utils._rebuild_device_tensor_from_numpy": self._device_tensor,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": self._device_tensor,
            "torch._utils._rebuild_xla_tensor": self._device_tensor,
            "torch._utils._rebuild_wrapper_subclass": self._wrapper_subclass,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch._tensor._rebuild_from_type": self._from_type,
            "torch.tensor._rebuild_from_type": self._from_type,
        }

    def storage(self, reference: Any) -> object:
        """What a persistent id stands for: a storage, or the class of an old whole module.

        The id is ``("storage", class, key, location, numel)``, perhaps with a view of the storage behind, or
        ``("module", class, ...)``.
        """
        if type(reference) is not tuple or not 2 <= len(reference) <= 6 or type(reference[1]) is not Global:
            raise ValueError("a persistent id that torch does not write")
        if reference[0] == "module":
            return reference[1]
        what, kind, key, _, numel, *view = reference
        if what != "storage" or type(key) is not str or len(key) > _LONGEST_KEY:
            raise ValueError("a persistent id that torch does not write")
        if type(numel) is not int or not 0 <= numel <= _BIGGEST:
            raise ValueError("a storage of impossible size")
        dtype, itemsize = self._kinds.get(kind) or self._kind(kind)
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, dtype, itemsize, numel)
        elif storage.dtype != dtype or storage.numel != numel:
            raise ValueError(f"storage {key[:80]!r} has two types or sizes")
        return storage if not view or view[0] is None else _part(storage, view[0])

    def _kind(self, kind: Global) -> tuple[str, int]:
        """Element type and size of a storage class."""
        module, _, name = kind.name.rpartition(".")
        if module not in ("torch", "torch.cuda", "torch.storage") or name not in STORAGE_DTYPES:
            raise ValueError(f"storage class {kind.name} is unknown")
        if name == "UntypedStorage" and not self._untyped:
            raise ValueError("a storage without a dtype (float8, uint16), which torch.load can't read here")
        self._kinds[kind] = STORAGE_DTYPES[name], _itemsize(STORAGE_DTYPES[name])
        return self._kinds[kind]

    def _spec(
        self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: str = "", note: str = ""
    ) -> TensorSpec:
        """The tensor that lies over a storage, if it lies inside."""
        self._count += 1
        if self._count > self._limits.tensors:
            raise exceeded("tensors", self._limits.tensors, "the file holds too many tensors")
        if type(storage) is not Storage:
            raise TypeError("a tensor without a storage")
        if type(offset) is not int or type(shape) is not tuple or type(stride) is not tuple:
            raise TypeError("a tensor whose sizes, strides or offset are of a wrong type")
        if len(shape) > self._limits.dims:
            raise exceeded("dims", self._limits.dims, f"a tensor has {len(shape)} dimensions")
        elements = span = 1
        for size, step in zip(shape, stride, strict=True):
            if type(size) is not int or type(step) is not int or not (0 <= size <= _BIGGEST >= step >= 0):
                raise ValueError("a size or stride that is no natural number")
            elements *= size
            span += (size - 1) * step
        numel, start = storage.numel, storage.start
        if dtype and dtype != storage.dtype:
            itemsize = _itemsize(dtype)
            numel, start = numel * storage.itemsize // itemsize, start * storage.itemsize // itemsize
        if elements > _BIGGEST or not 0 <= offset <= _BIGGEST:
            raise ValueError("a tensor of impossible size or offset")
        if elements and offset + span > numel:
            raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {numel} elements")
        return TensorSpec(dtype or storage.dtype, shape, stride, start + offset, storage.key, note)

    def _odd(self, dtype: str, shape: Any, note: str) -> TensorSpec:
        """A tensor without a plain layout: it keeps its place in the table."""
        if type(shape) is not tuple:
            raise TypeError("a tensor whose sizes are of a wrong type")
        if all(type(size) is int for size in shape[: self._limits.dims]):
            stride = contiguous_stride(shape)
            return replace(self._spec(_ENDLESS, 0, shape, stride, note=note), dtype=dtype, storage="")
        raise TypeError("a size that is no natural number")

    # -- one method for each of torch's functions; the arguments are torch's -------------------------------

    def _strided(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_tensor(storage, offset, size, stride)``; v2 adds requires_grad, hooks, metadata."""
        note = "conjugated or negated" if len(args) > 6 and args[6] else ""
        storage, offset, shape, stride = args[:4]
        return self._spec(storage, offset, shape, stride, note=note)

    def _strided_untyped(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)``."""
        note = "conjugated or negated" if len(args) > 7 and args[7] else ""
        storage, offset, shape, stride = args[:4]
        return self._spec(storage, offset, shape, stride, dtype_of(args[6]), note)

    def _parameter(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_parameter(data, requires_grad, hooks)``; its own state adds nothing to the table."""
        return args[0]

    def _quantized(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_qtensor(storage, offset, size, stride, quantizer, requires_grad, hooks)``."""
        storage, offset, shape, stride = args[:4]
        inside = self._spec(storage, offset, shape, stride)
        return TensorSpec(inside.dtype, shape, stride, note="quantized")

    def _sparse(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_sparse_tensor(layout, (indices.., values, size, ..))``."""
        data = args[1][:8]
        parts = [part for part in data if isinstance(part, TensorSpec)]
        shape = next((part for part in data if type(part) is tuple), None)
        return self._odd(parts[-1].dtype, shape, "sparse")

    def _nested(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_nested_tensor(buffer, sizes, strides, offsets)``: its shape is data, so it has none."""
        buffer = args[0]
        if not isinstance(buffer, TensorSpec):
            raise TypeError("a nested tensor without its buffer")
        return self._odd(buffer.dtype, buffer.shape, "nested")

    def _meta(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)``."""
        return self._odd(dtype_of(args[0]), args[1], "meta")

    def _device_tensor(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_device_tensor_from_cpu_tensor(data, dtype, device, requires_grad)`` and its kin."""
        data = args[0]
        if isinstance(data, TensorSpec) and data.dtype == dtype_of(args[1]):
            return data
        return Stub(Global("torch._utils._rebuild_device_tensor"), args)

    def _wrapper_subclass(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_wrapper_subclass(cls, dtype, size, stride, offset, layout, device, requires_grad)``."""
        return self._odd(dtype_of(args[1]), args[2], f"subclass {_name(args[0])}")

    def _from_type(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_from_type_v2(func, type, args, state)``: a subclass, or a tensor with attributes."""
        func, kind, arguments = args[:3]
        rebuild = func.rebuild if isinstance(func, Global) else None
        if rebuild is None or not isinstance(arguments, tuple):
            return Stub(kind, args)
        plain = rebuild(arguments)
        if not isinstance(plain, TensorSpec) or plain.note or _name(kind) in _PLAIN_TYPES:
            return plain
        return replace(plain, note=f"subclass {_name(kind)}")


def _part(storage: Storage, view: Any) -> Storage:
    """A part of a storage (torch before 1.0): ``(key, offset, size)``."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise TypeError("a view of a storage that torch does not write")
    _, start, numel = view
    if (
        type(start) is not int
        or type(numel) is not int
        or start < 0
        or not 0 <= numel <= storage.numel - start
    ):
        raise ValueError("a view that reaches beyond its storage")
    return Storage(storage.key, storage.dtype, storage.itemsize, numel, start)


def dtype_of(named: Any) -> str:
    """Name of a dtype, without ``torch.``; TypeError or ValueError if it is none."""
    dtype = _name(named).removeprefix("torch.")
    _itemsize(dtype)
    return dtype


def _itemsize(dtype: str) -> int:
    if dtype not in ITEMSIZE and dtype not in QUANTIZED:
        raise ValueError(f"dtype {dtype} is unknown")
    return ITEMSIZE.get(dtype) or QUANTIZED[dtype]


def _name(named: Any) -> str:
    if not isinstance(named, Global):
        raise TypeError("a class or dtype is not given by its name")
    return named.name
