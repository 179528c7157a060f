"""Distributed checkpoints in safetensors: a folder with one file for each rank, with parts of tensors.

``torch.distributed.checkpoint.HuggingFaceStorageWriter(save_distributed=True)`` writes them. Each file has
the offsets of its parts, and the shape of a whole tensor follows from its parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import PlainChunk, TensorSpec, contiguous_stride
from pytest_ckptcompat.files.folders import names_in
from pytest_ckptcompat.files.paths import inside

from .blocks import make_up
from .pickle_stubs import Dict
from .safetensors import NAME_OF_PARTS, read_part

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.files import Files


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(path: str, file: object, files: Files, limits: Limits) -> Header | None:
    """Read a folder with the parts of all ranks."""
    if file is not None:
        return None
    named = [
        each for each in names_in(path) if each.startswith(NAME_OF_PARTS) and each.endswith(".safetensors")
    ]
    return _joined(path, sorted(named), files, limits) if named else None


def _joined(path: str, names: list[str], files: Files, limits: Limits) -> Header:
    limits.check("files", len(names), "it has too many files")
    chunks: dict[str, list[PlainChunk]] = {}
    dtypes: dict[str, str] = {}
    for name in names:
        with files.open(inside(path, name)) as file:
            found = read_part(file, limits)
        if found is None:
            raise CheckpointError(f"{escape(name)} is not a safetensors file")
        header, offsets = found
        tensors: dict[str, TensorSpec] = header.tree  # type: ignore[assignment]  # nothing else is in it
        for key, spec in tensors.items():
            begin = offsets.get(key, (0,) * len(spec.shape))
            alike = dtypes.setdefault(key, spec.dtype) == spec.dtype and not spec.note
            if len(begin) != len(spec.shape) or not alike:
                raise CheckpointError(f"the part of {escape(key)} in {escape(name)} does not fit the others")
            (extent,) = header.storages[spec.storage]
            part = PlainChunk(extent.file, extent.offset, extent.nbytes, begin, spec.shape)
            chunks.setdefault(key, []).append(part)
        limits.check("tensors", sum(map(len, chunks.values())), "it holds too many parts of tensors")
    whole = Dict()
    for key, parts in chunks.items():
        whole.put(key, _whole(key, dtypes[key], parts))
    return Header("distributed safetensors", whole, {key: tuple(parts) for key, parts in chunks.items()})


def _whole(key: str, dtype: str, parts: list[PlainChunk]) -> TensorSpec:
    """Return the tensor that the parts form. Each element must be in exactly one part."""
    ends = [[low + size for low, size in zip(part.begin, part.size, strict=True)] for part in parts]
    if len({len(each) for each in ends}) != 1:
        raise CheckpointError(f"the parts of {escape(key)} have different numbers of dimensions")
    shape = tuple(map(max, zip(*ends, strict=True)))
    if not make_up(shape, [(part.begin, part.size) for part in parts]):
        raise CheckpointError(f"parts of {escape(key)} are missing or overlap: its shape should be {shape}")
    return TensorSpec(dtype, shape, contiguous_stride(shape), 0, key)
