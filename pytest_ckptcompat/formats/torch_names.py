"""What torch's own names in a pickle mean: the functions that lay tensors over storages.

Based on ``torch/_utils.py`` and ``torch/serialization.py`` of torch 1.0 to 2.14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.limits import exceeded
from pytest_ckptcompat.core.tensor_spec import CompositeSpec, TensorSpec, contiguous_stride

from .pickle_names import PlainNames
from .pickle_stubs import Global, Size, Storage, Stub
from .safe_names import is_safe
from .torch_arguments import (
    LAYOUT,
    PACKED,
    QUANTIZED,
    Value,
    check_grad,
    check_state,
    composite,
    conjugated,
    device_of,
    distributed,
    dtype_of,
    is_value,
    itemsize_of,
    layout_of,
    learned,
    name_of,
    overflows,
    quantizer_of,
)
from .torch_storages import Storages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.core.limits import Limits

_BIGGEST = (1 << 63) - 1
_ENDLESS = Storage("", "uint8", 1, _BIGGEST)
_SIZES = {tuple, Size}
_DISTRIBUTED = "torch.distributed."
_ARGUMENTS_OF_SUBCLASS = 8
_USUAL = 6
"""The number of arguments of `_rebuild_tensor_v2` without metadata."""

_PLAIN_TYPES = {
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch._tensor.Tensor",
}


class Tensors(Storages):
    """The replacements for torch's names while one pickle runs.

    Args:
        limits: caps.
        legacy: as for `Storages`.

    Attributes:
        names: name -> what is done in place of calling it; for `Machine`.
    """

    def __init__(self, limits: Limits, *, legacy: bool = False) -> None:
        super().__init__(legacy=legacy)
        self._limits = limits
        self._count = 0
        self.names: Mapping[str, Callable[[tuple[Any, ...]], object]] = {
            **PlainNames(limits).names,
            "torch._utils._rebuild_tensor": self._bare,
            "torch._utils._rebuild_tensor_v2": self._strided,
            "torch._utils._rebuild_tensor_v3": self._strided_untyped,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter_with_state,
            "torch._utils._rebuild_qtensor": self._quantized,
            "torch._utils._rebuild_sparse_tensor": self._sparse,
            "torch._utils._rebuild_sparse_csr_tensor": self._sparse,
            "torch._utils._rebuild_nested_tensor": self._nested,
            "torch._utils._rebuild_meta_tensor_no_storage": self._meta,
            "torch._utils._rebuild_device_tensor_from_numpy": self._device_tensor,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": self._device_tensor,
            "torch._utils._rebuild_xla_tensor": self._device_tensor,
            "torch._utils._rebuild_wrapper_subclass": self._wrapper_subclass,
            "torch.fx.graph_module.reduce_graph_module": _graph_module,
            "torch.device": device_of,
            LAYOUT: layout_of,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch._tensor._rebuild_from_type": self._from_type,
            "torch.tensor._rebuild_from_type": self._from_type,
        }

    def _spec(
        self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: str = "", *, quantized: bool = False
    ) -> TensorSpec:
        """Return a tensor over a storage; raise ValueError if it reaches beyond the storage."""
        self._count += 1
        if self._count > self._limits.tensors:
            raise exceeded("tensors", self._limits.tensors, "the file holds too many tensors")
        if type(storage) is not Storage:
            raise TypeError("a tensor without a storage")
        if type(shape) is not tuple or type(stride) is not tuple or type(offset) is not int:
            if type(offset) is not int or type(shape) not in _SIZES or type(stride) not in _SIZES:
                raise TypeError("a tensor whose sizes, strides or offset are of a wrong type")
            shape, stride = tuple(shape), tuple(stride)
        if len(shape) > self._limits.dims:
            raise exceeded("dims", self._limits.dims, f"a tensor has {len(shape)} dimensions")
        elements = span = 1
        for size, step in zip(shape, stride, strict=True):
            if type(size) is not int or type(step) is not int or not (0 <= size <= _BIGGEST >= step >= 0):
                raise ValueError("a size or stride that is not a natural number")
            elements *= size
            span += (size - 1) * step
        numel, start = storage.numel, storage.start
        if dtype and dtype != storage.dtype:
            itemsize = itemsize_of(dtype)
            numel, start = numel * storage.itemsize // itemsize, start * storage.itemsize // itemsize
        if elements > _BIGGEST or not 0 <= offset <= _BIGGEST or (not elements and overflows(shape)):
            raise ValueError("a tensor of impossible size or offset")
        if (storage.dtype in QUANTIZED) is not quantized:
            raise ValueError(f"a {'quantized' if quantized else 'plain'} tensor of {storage.dtype}")
        if elements and offset + span > numel:
            raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {numel} elements")
        return TensorSpec(dtype or storage.dtype, shape, stride, start + offset, storage.key)

    def _odd(
        self, dtype: str, shape: Any, note: str, kind: str = "", parts: tuple[object, ...] = ()
    ) -> TensorSpec:
        """Return the spec of a tensor without a plain layout."""
        if type(shape) not in _SIZES:
            raise TypeError("a tensor whose sizes are of a wrong type")
        if all(type(size) is int for size in shape[: self._limits.dims]):
            shape = tuple(shape)
            stride = contiguous_stride(shape)
            self._spec(_ENDLESS, 0, shape, stride)
            return CompositeSpec(dtype, shape, stride, 0, "", note, kind, parts)
        raise TypeError("a size that is not a natural number")

    # -- one method for each of torch's functions; what torch refuses is refused ---------------------------

    def _strided(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)``."""
        if len(args) == _USUAL and args[4] is False:  # nearly all of them
            return self._spec(args[0], args[1], args[2], args[3])
        storage, offset, shape, stride, requires_grad, _, *metadata = args
        spec = self._spec(storage, offset, shape, stride)
        check_grad(requires_grad, spec.dtype)
        if metadata and metadata != [None]:
            return conjugated(spec, *metadata)
        return learned(spec, requires_grad=True) if requires_grad else spec

    def _bare(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_tensor(storage, offset, size, stride)``."""
        storage, offset, shape, stride = args
        return self._spec(storage, offset, shape, stride)

    def _strided_untyped(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)``."""
        storage, offset, shape, stride, requires_grad, _, dtype, *metadata = args
        spec = self._spec(storage, offset, shape, stride, dtype_of(dtype))
        if requires_grad is not False:  # torch.save writes it; torch.load then fills a leaf in place
            raise ValueError(f"a tensor of {spec.dtype} that requires a gradient, which torch.load fails on")
        if spec.dtype in QUANTIZED:
            raise ValueError(f"a plain tensor of {spec.dtype}")
        return conjugated(spec, *metadata) if metadata else spec

    def _parameter(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_parameter(data, requires_grad, hooks)``."""
        data, requires_grad, _ = args
        if isinstance(data, TensorSpec):
            check_grad(requires_grad, data.dtype)
            return learned(data, requires_grad=requires_grad, parameter=True)
        if type(data) is not Stub:
            raise TypeError("a parameter that is not made of a tensor")
        return data

    def _parameter_with_state(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_parameter_with_state(data, requires_grad, hooks, state)``; the state is not used."""
        *_, state = args
        check_state(state)
        return self._parameter(args[:-1])

    def _quantized(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_qtensor(storage, offset, size, stride, quantizer, requires_grad, hooks)``."""
        storage, offset, shape, stride, quantizer, requires_grad, _ = args
        elements = storage
        if type(storage) is Storage and (packed := PACKED.get(storage.dtype)):
            elements = Storage(storage.key, storage.dtype, 1, packed * storage.numel, packed * storage.start)
        inside = self._spec(elements, offset, shape, stride, quantized=True)
        check_grad(requires_grad, inside.dtype)
        if inside.dtype in PACKED:
            inside = TensorSpec("uint8", (storage.numel,), (1,), storage.start, storage.key)
        parts = (inside, *quantizer_of(quantizer, shape))
        about = (storage.dtype, tuple(shape), tuple(stride), offset, inside.storage)
        return CompositeSpec(*about, "quantized", "quantized", parts)

    def _sparse(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_sparse_tensor(layout, (indices.., values, size, ..))``."""
        layout, data = args
        known = type(layout) is Value and layout.name == LAYOUT
        name = layout.args[0].removeprefix("torch.") if known else ""
        if not name.startswith("sparse_") or type(data) is not tuple:
            raise TypeError("a sparse tensor of an unknown layout")
        coo = name == "sparse_coo"
        count = 2 if coo else 3
        tensors, (shape, *rest) = data[:count], data[count:]
        if not all(isinstance(each, TensorSpec) for each in tensors) or len(rest) > coo:
            raise TypeError("a sparse tensor that is not made of its indices and values")
        coalesced = rest[0] if rest else None
        return self._odd(
            tensors[-1].dtype, shape, "sparse", "sparse", (name, *tensors, tuple(shape), coalesced)
        )

    def _nested(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_nested_tensor(buffer, sizes, strides, offsets)``; reported with its buffer's shape."""
        buffer, sizes, strides, offsets = args
        if not all(isinstance(each, TensorSpec) for each in args):
            raise TypeError("a nested tensor that is not made of tensors")
        return self._odd(buffer.dtype, buffer.shape, "nested", "nested", (buffer, sizes, strides, offsets))

    def _meta(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)``."""
        dtype, shape, stride, requires_grad = args
        check_grad(requires_grad, dtype_of(dtype))
        if dtype_of(dtype) in QUANTIZED:
            raise ValueError("a quantized tensor on the meta device")
        plain = self._spec(_ENDLESS, 0, shape, stride)
        return CompositeSpec(dtype_of(dtype), plain.shape, plain.stride, 0, "", "meta", "meta")

    def _device_tensor(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_device_tensor_from_cpu_tensor(data, dtype, device, requires_grad)`` and the like."""
        data, dtype, device, requires_grad = args
        if type(device) is str:
            device = device_of((device,))
        known = type(device) is Value and device.name == "torch.device"
        if not known or not (isinstance(data, TensorSpec) or type(data) is Stub):
            raise TypeError("a tensor of a device that is not made of its values")
        check_grad(requires_grad, dtype_of(dtype))
        if isinstance(data, TensorSpec) and data.dtype == dtype_of(dtype):
            return data
        return Stub(Global("torch._utils._rebuild_device_tensor"), args)

    def _wrapper_subclass(self, args: tuple[Any, ...]) -> TensorSpec:
        """``_rebuild_wrapper_subclass(cls, dtype, size, stride, offset, layout, device, requires_grad)``."""
        kind, dtype, shape, *_, requires_grad = args
        if len(args) != _ARGUMENTS_OF_SUBCLASS or name_of(kind) in _PLAIN_TYPES or is_value(kind):
            raise TypeError("a tensor of a subclass without its class, layout or device")
        check_grad(requires_grad, dtype_of(dtype))
        return self._odd(dtype_of(dtype), shape, f"subclass {name_of(kind)}")

    def _from_type(self, args: tuple[Any, ...]) -> object:
        """``_rebuild_from_type_v2(func, type, args, state)``: a subclass, or a tensor with attributes."""
        func, kind, arguments, state = args
        if type(func) not in (Global, Stub) or type(arguments) is not tuple or is_value(kind):
            raise TypeError("a tensor that is not made by a function, of a class, from arguments")
        rebuild = func.rebuild if isinstance(func, Global) else None
        if rebuild is None:
            if isinstance(func, Global) and is_safe(func.name):
                raise TypeError(f"{func.name} does not rebuild a tensor")
            return Stub(kind, args)
        plain = rebuild(arguments)
        if name_of(kind) in _PLAIN_TYPES:
            check_state(state)
            return plain
        if not isinstance(plain, TensorSpec):
            return plain
        if name_of(kind).startswith(_DISTRIBUTED):
            return distributed(plain, name_of(kind), state)
        if plain.note:
            return plain
        return composite(plain, f"subclass {name_of(kind)}", "subclass", (plain,))


def _graph_module(args: tuple[Any, ...]) -> Stub:
    """``reduce_graph_module(attributes, code)``: a traced module that was pickled whole."""
    made = Stub(Global("torch.fx.graph_module.GraphModule"))
    made.state = args[0]
    return made
