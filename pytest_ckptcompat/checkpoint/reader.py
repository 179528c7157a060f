"""Read one tensor at a time: into new memory, into an existing tensor, or onto a CUDA device."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.tensor_spec import ITEMSIZE, TensorSpec, contiguous_stride

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .storages import Source, Storages

PIECE = 16 << 20
"""The most bytes held beside the destination while values are converted, rearranged or sent to a GPU."""

_MOST_REPEATED = 1 << 30
"""The size in bytes above which a view that is larger than its storage is refused."""

_Index = tuple[slice, ...]


def read(storages: Storages, spec: TensorSpec) -> torch.Tensor:
    """Read the values of one tensor into new memory. Strides are kept if they leave no gaps."""
    begin, end = span(spec)
    if spec.numel and not storages.in_chunks(spec.storage) and end - begin <= spec.nbytes:
        _check_repeats(spec)
        memory = buffer(end - begin)
        storages.source(spec.storage)(begin, memory_of(memory))
        return view(memory, spec, begin)
    made = new(replace(spec, stride=contiguous_stride(spec.shape)) if spec.numel else spec, "cpu")
    copy(storages, spec, made)
    return made


def copy(storages: Storages, spec: TensorSpec, destination: torch.Tensor) -> None:
    """Read the values into a tensor of the same shape.

    Contiguous CPU memory of the same dtype is filled directly. Otherwise, the values are copied in pieces of
    at most `PIECE` bytes, through page-locked memory for a CUDA device.
    """
    for block, source, part in storages.blocks(spec) if spec.numel else ():
        if part.numel:
            _copy(source, part, destination[block])


def _copy(source: Source, spec: TensorSpec, destination: torch.Tensor) -> None:
    _check_repeats(spec)
    if _fits(spec, destination):
        source(span(spec)[0], memory_of(destination))
        return
    on_card = destination.device.type == "cuda"
    begin, end = span(spec)
    memory = _staging() if on_card else buffer(min(end - begin, max(PIECE, ITEMSIZE[spec.dtype])))
    for index, piece in _pieces(spec):
        begin, end = span(piece)
        source(begin, memory_of(memory)[: end - begin])
        destination[index].copy_(view(memory, piece, begin), non_blocking=on_card)
        if on_card:
            torch.cuda.current_stream(destination.device).synchronize()


def span(spec: TensorSpec) -> tuple[int, int]:
    """Return a tensor's first byte in its storage, and the byte after its last."""
    itemsize = ITEMSIZE.get(spec.dtype, 0)
    return spec.offset * itemsize, (spec.offset + spec.span) * itemsize


def new(spec: TensorSpec, device: str) -> torch.Tensor:
    """Return an empty tensor with the shape, stride and dtype of `spec`."""
    try:
        return torch.empty_strided(spec.shape, spec.stride, dtype=torch_dtype(spec.dtype), device=device)
    except RuntimeError:
        if not spec.note:
            raise
        return torch.empty(spec.shape, device=device)  # quantized tensors can't be made on meta


def buffer(nbytes: int, device: str = "cpu") -> torch.UntypedStorage:
    """Return uninitialised memory."""
    return torch.UntypedStorage(nbytes, device=device)  # type: ignore[no-untyped-call]


def view(memory: torch.UntypedStorage, spec: TensorSpec, begin: int) -> torch.Tensor:
    """Return the tensor over `memory`, which holds its storage from byte `begin`."""
    dtype = torch_dtype(spec.dtype)
    offset = spec.offset - begin // ITEMSIZE[spec.dtype]
    return torch.empty(0, dtype=dtype, device=memory.device).set_(memory, offset, spec.shape, spec.stride)


def memory_of(owner: torch.UntypedStorage | torch.Tensor) -> memoryview:
    """Return the bytes of a storage or contiguous tensor on the CPU. Keep the owner alive meanwhile."""
    nbytes = (
        owner.nbytes() if isinstance(owner, torch.UntypedStorage) else owner.numel() * owner.element_size()
    )
    return memoryview((ctypes.c_char * nbytes).from_address(owner.data_ptr())).cast("B")


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype with this name."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"torch {torch.__version__} has no dtype {name}")
    return dtype


@cache
def _staging() -> torch.UntypedStorage:
    return torch.empty(PIECE, dtype=torch.uint8, pin_memory=True).untyped_storage()


def _fits(spec: TensorSpec, destination: torch.Tensor) -> bool:
    """Return whether the file's bytes can be read straight into the destination."""
    return (
        destination.device.type == "cpu"
        and destination.dtype == torch_dtype(spec.dtype)
        and destination.is_contiguous()
        and not (destination.is_conj() or destination.is_neg())
        and all(
            size == 1 or step == dense
            for size, step, dense in zip(spec.shape, spec.stride, contiguous_stride(spec.shape), strict=True)
        )
    )


def _check_repeats(spec: TensorSpec) -> None:
    begin, end = span(spec)
    if end - begin < spec.nbytes > _MOST_REPEATED:
        raise CheckpointError(
            f"a tensor of shape {spec.shape} repeats {end - begin} bytes into {spec.nbytes}; values of such "
            f"views are read up to {_MOST_REPEATED} bytes"
        )


def _pieces(spec: TensorSpec) -> Iterator[tuple[_Index, TensorSpec]]:
    """Yield parts of a tensor that span at most `PIECE` bytes of its storage, with their indices."""
    pending: list[tuple[_Index, TensorSpec]] = [((slice(None),) * len(spec.shape), spec)]
    while pending:
        index, part = pending.pop()
        begin, end = span(part)
        if end - begin <= max(PIECE, ITEMSIZE[part.dtype]):
            yield index, part
            continue
        widest = max(
            (dim for dim, size in enumerate(part.shape) if size > 1), key=lambda dim: part.stride[dim]
        )
        step = part.stride[widest]
        inner = part.span - (part.shape[widest] - 1) * step
        length = max(1, (PIECE // ITEMSIZE[part.dtype] - inner) // step + 1)
        for start in range(0, part.shape[widest], length):
            size = min(length, part.shape[widest] - start)
            shape = (*part.shape[:widest], size, *part.shape[widest + 1 :])
            at = (*index[:widest], slice(start, start + size), *index[widest + 1 :])
            pending.append((at, replace(part, shape=shape, offset=part.offset + start * step)))
