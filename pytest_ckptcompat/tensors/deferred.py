"""Tensors whose values are still on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from .nested import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat.core.tensor_spec import TensorSpec

    from .witness import Witness

_T = torch.Tensor


class Source(Protocol):
    """A reader for the values of tensors on disk."""

    def tensor(self, spec: TensorSpec, /) -> torch.Tensor:
        """Return the values of one tensor in new memory."""

    def read_into(self, spec: TensorSpec, destination: torch.Tensor, /) -> None:
        """Do ``destination.copy_(tensor(spec))`` without a second copy of the values."""


class DeferredTensor(torch.Tensor):
    """A tensor of a checkpoint whose values are read when they are needed.

    ``destination.copy_(stored)`` reads the bytes straight into the destination. Shape, dtype, strides and the
    like are known without reading. Any other operation reads the values into an ordinary tensor on the CPU
    and works on that, which is kept only if the operation changes it in place or returns a view of it.
    """

    _spec: TensorSpec
    _source: Source
    _kept: torch.Tensor | None
    _witness: Witness | None

    @staticmethod
    def of(
        source: Source, spec: TensorSpec, shape: torch.Tensor, witness: Witness | None = None
    ) -> DeferredTensor:
        """Make a deferred tensor.

        Args:
            source: reads its values.
            spec: its row of the table.
            shape: the tensor on the meta device, where tied tensors share storage.
            witness: remembers where the values are in memory, so that they are read only once.
        """
        stored: DeferredTensor = torch.Tensor._make_subclass(DeferredTensor, shape)
        stored._spec, stored._source, stored._kept, stored._witness = spec, source, None, witness
        return stored

    def read(self) -> torch.Tensor:
        """Return the values as an ordinary tensor on the CPU."""
        if self._kept is not None:
            return self._kept
        witness = self._witness
        if witness is None:
            return self._source.tensor(self._spec)
        if (values := witness.values()) is not None:
            return values
        holder = witness.holder()
        values = self._source.tensor(self._spec) if holder is None else holder.detach().clone()
        witness.keep(values)
        return values

    def is_in(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is known to have the same bits, without reading the values again.

        Compares a CRC-32 of the values read. False if none was recorded.
        """
        return (
            self._witness is not None
            and self._kept is None
            and (tensor.shape, tensor.dtype) == (self.shape, self.dtype)
            and self._witness.is_in(tensor)
        )

    def _read_into(self, destination: torch.Tensor) -> None:
        """Fill a tensor of the same shape from memory if the values are there, else from disk."""
        witness = self._witness
        holder = None if witness is None else witness.holder()
        if holder is not None:
            if holder.data_ptr() != destination.data_ptr() or holder.dtype != destination.dtype:
                destination.detach().copy_(holder.detach())
            return
        self._source.read_into(self._spec, destination)
        if witness is not None and destination.dtype == self.dtype:
            witness.note(destination)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The CPU, where the values are once they are read."""
        return torch.device("cpu")

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """False, because the tensor has values."""
        return False

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """True, because the values are read to the CPU."""
        return True

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeferredTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, and read values only if it needs them."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _KNOWN_WITHOUT_VALUES:
                return func(*args, **kwargs)
            if func is _T.copy_ and _is_read_straight(args, kwargs):
                destination, stored = args[0], args[1]
                stored._read_into(destination)
                torch.autograd.graph.increment_version(destination)
                return destination
            if func in _ITSELF:
                (stored,) = args
                if stored._kept is not None:
                    return func(stored._kept)
                return DeferredTensor.of(stored._source, stored._spec, func(stored), stored._witness)
            return _on_source(func, args, kwargs)


def materialise(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a stored tensor in memory, and any other tensor unchanged."""
    return tensor.read() if isinstance(tensor, DeferredTensor) else tensor


def _is_read_straight(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether ``copy_`` can read straight from disk into the destination."""
    if len(args) not in (2, 3) or kwargs.keys() - {"non_blocking"}:
        return False
    destination, stored = args[0], args[1]
    return (
        isinstance(stored, DeferredTensor)
        and stored._kept is None
        and type(destination) in (torch.Tensor, torch.nn.Parameter)
        and destination.shape == stored.shape
        and not (destination.requires_grad and torch.is_grad_enabled())
    )


def _on_source(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `func` on ordinary tensors."""
    read: dict[int, tuple[DeferredTensor, torch.Tensor, int]] = {}

    def ordinary(argument: Any) -> Any:
        if isinstance(argument, DeferredTensor):
            if id(argument) not in read:
                tensor = argument.read()
                read[id(argument)] = argument, tensor, tensor._version
            return read[id(argument)][1]
        if type(argument) in (list, tuple):
            return type(argument)(map(ordinary, argument))
        return argument

    result = func(*ordinary(args), **{name: ordinary(value) for name, value in kwargs.items()})
    memories = {_memory(tensor) for _, tensor in tensors(result)}
    for stored, tensor, version in read.values():
        if tensor._version != version or _memory(tensor) in memories or func in _SEES_MEMORY:
            stored._kept = tensor
        if result is tensor:
            result = stored
    return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _getter(name: str) -> Any:
    return getattr(_T, name).__get__


_KNOWN_WITHOUT_VALUES = {
    *(getattr(_T, name) for name in (
        "size", "stride", "dim", "ndimension", "numel", "nelement", "element_size", "storage_offset",
        "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "is_pinned",
        "__len__", "__hash__", "untyped_storage", "get_device", "is_inference",
    )),
    *(_getter(name) for name in (
        "shape", "dtype", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf", "names", "nbytes",
        "itemsize", "is_sparse", "is_sparse_csr", "is_quantized", "is_nested", "is_mkldnn", "is_cuda",
        "is_xpu", "is_mps", "is_xla", "is_mtia", "is_ipu", "is_maia", "is_vulkan", "_version", "output_nr",
        "retains_grad",
    ) if hasattr(_T, name)),
    torch.is_floating_point, torch.is_complex, torch.numel, torch.is_conj, torch.is_neg, torch.is_signed,
}  # fmt: skip
_ITSELF = {_T.detach, torch.detach, _getter("data")}
_SEES_MEMORY = {_T.numpy, _T.__array__, _T.data_ptr, _T.__dlpack__, _T.tolist}
