"""Build tensors without a plain layout from the plain tensors that store them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import CompositeSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[TensorSpec], torch.Tensor]

NOT_ON_META = frozenset({"quantized", "sparse", "nested"})
"""Kinds that don't exist on the meta device, or whose values a model's own loader needs."""

PLAIN_VALUES = frozenset({"conjugated", "subclass"})
"""Kinds whose values are one ordinary tensor."""

_INTEGERS = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
"""The integer dtypes that store the quantized dtypes."""


def composed(spec: TensorSpec, read: Read) -> torch.Tensor:
    """Build a tensor as torch does. Only kinds in our own table are built; no name is looked up."""
    if not can_compose(spec):
        raise CheckpointError(
            f"a tensor's values have no plain layout ({escape(spec.note)}), and can't be read"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that sparse layouts are in beta
            return _KINDS[spec.kind](spec, read)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = escape(str(error).partition("\n")[0], 200)
        raise CheckpointError(f"a tensor ({escape(spec.note)}) can't be put together: {reason}") from None


def can_compose(spec: TensorSpec) -> TypeGuard[CompositeSpec]:
    """Return whether a tensor without a plain layout can be composed."""
    return isinstance(spec, CompositeSpec) and spec.kind in _KINDS


def _conjugated(spec: CompositeSpec, read: Read) -> torch.Tensor:
    plain, conj, neg = spec.parts
    tensor = read(_tensor(plain))
    tensor = tensor.conj() if conj else tensor
    return tensor._neg_view() if neg else tensor


def _quantized(spec: CompositeSpec, read: Read) -> torch.Tensor:
    numbers: Any
    inside, scheme, *numbers = spec.parts
    dtype = getattr(torch, spec.dtype)
    integers = read(replace(_tensor(inside), dtype=_INTEGERS.get(spec.dtype, "uint8")))
    made: Any
    if scheme == "per_tensor_affine":
        scale, zero_point = numbers
        made = torch._empty_affine_quantized(spec.shape, scale=scale, zero_point=zero_point, dtype=dtype)
    else:
        scales, zero_points, axis = numbers
        floats = str(scheme).endswith("float_qparams")
        made = torch._empty_per_channel_affine_quantized(
            spec.shape,
            scales=_numbers(scales, torch.float if floats else torch.double, read),
            zero_points=_numbers(zero_points, torch.float if floats else torch.long, read),
            axis=axis,
            dtype=dtype,
        )
    offset, stride = integers.storage_offset(), integers.stride()
    if spec.dtype not in _INTEGERS:  # several elements share a byte
        offset, stride = spec.offset, spec.stride
    storage = torch.storage.TypedStorage(wrap_storage=integers.untyped_storage(), dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
    return made.set_(storage, offset, spec.shape, stride)  # type: ignore[no-any-return]


def _numbers(given: Any, dtype: torch.dtype, read: Read) -> torch.Tensor:
    """Return scales or zero points as a tensor. A list is converted as torch does it."""
    return read(given) if isinstance(given, TensorSpec) else torch.tensor(given, dtype=dtype)


def _sparse(spec: CompositeSpec, read: Read) -> torch.Tensor:
    layout, *parts, shape, coalesced = spec.parts
    tensors = [read(_tensor(part)) for part in parts]
    if layout == "sparse_coo":
        indices, values = tensors
        made = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)  # type: ignore[arg-type]
        return made if coalesced is None else made._coalesced_(bool(coalesced))
    compose: Any = torch.sparse_compressed_tensor
    found: torch.Tensor = compose(*tensors, shape, layout=getattr(torch, str(layout)), check_invariants=True)
    return found


def _nested(spec: CompositeSpec, read: Read) -> torch.Tensor:
    """Build a nested tensor. Sizes and offsets are checked first, because torch trusts them."""
    buffer, sizes, strides, offsets = (read(_tensor(part)) for part in spec.parts)
    if (
        buffer.dim() != 1
        or sizes.dim() != 2
        or strides.shape != sizes.shape
        or offsets.shape != sizes.shape[:1]
    ):
        raise ValueError("its sizes, strides and offsets do not fit each other")
    rows = zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True)
    for size, stride, offset in rows:
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if min([offset, *size, *stride]) < 0 or (math.prod(size) and last >= buffer.numel()):
            raise ValueError("a part of it lies outside its memory")
    make: Any = torch._nested_view_from_buffer
    return make(buffer, sizes, strides, offsets)  # type: ignore[no-any-return]


def _tensor(part: object) -> TensorSpec:
    if not isinstance(part, TensorSpec):
        raise TypeError("a part of it is not a tensor")
    return part


_KINDS: dict[str, Callable[[CompositeSpec, Read], torch.Tensor]] = {
    "conjugated": _conjugated,
    "subclass": lambda spec, read: read(_tensor(spec.parts[0])),  # only the values, without their class
    "meta": lambda spec, read: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta"),
    "quantized": _quantized,
    "sparse": _sparse,
    "nested": _nested,
}
