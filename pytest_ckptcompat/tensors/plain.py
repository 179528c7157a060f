"""Batches as JSON, so that another process can draw the same batch again, even years later."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from typing import Any

import torch

_TENSOR = "__tensor__"
_TUPLE = "__tuple__"
_PLAIN = (str, int, float, bool, type(None))


def packed(value: Any) -> Any:
    """Return nested lists, tuples, dicts, plain values and tensors as JSON values.

    For floating and complex tensors, only shape and dtype are kept, because `synthetic.inputs` draws their
    values. For integer and boolean tensors, the values are kept too.

    Raises:
        ValueError: `value` contains something else. The message names its type.
    """
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"a tensor of type {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"a tensor of layout {str(value.layout).removeprefix('torch.')}")
        drawn = value.is_floating_point() or value.is_complex()
        about = [str(value.dtype).removeprefix("torch."), list(value.shape)]
        return {_TENSOR: about if drawn else [*about, encoded(value)]}
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {_TUPLE: [packed(item) for item in value]}
    if isinstance(value, list):
        return [packed(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: packed(item) for key, item in value.items()}
    raise ValueError(f"an object of type {type(value).__name__}")


def unpacked(value: Any) -> Any:
    """Return the value that `packed` was given. Floating and complex tensors are zeros on the CPU."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        name, sizes, *bits = value[_TENSOR]
        dtype = getattr(torch, name)
        return decoded(bits[0], dtype, sizes) if bits else torch.zeros(sizes, dtype=dtype, device="cpu")
    if _TUPLE in value:
        return tuple(unpacked(item) for item in value[_TUPLE])
    return {key: unpacked(item) for key, item in value.items()}


def digest(value: Any) -> str:
    """Return a hash of a packed batch."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def encoded(tensor: torch.Tensor) -> str:
    """Return the bits of an integer or boolean tensor as a compressed text."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    memory = bytes(flat.view(torch.uint8).tolist()) if len(flat) else b""
    return base64.b85encode(zlib.compress(memory, 9)).decode("ascii")


def decoded(text: str, dtype: torch.dtype, sizes: list[int]) -> torch.Tensor:
    """Return the tensor that `encoded` was given."""
    count = torch.Size(sizes).numel()
    size = count * torch.empty(0, dtype=dtype).element_size()
    try:
        memory = zlib.decompressobj().decompress(base64.b85decode(text), size + 1)
    except (ValueError, zlib.error):
        memory = b""
    if len(memory) != size:
        raise ValueError(f"{count} elements of {str(dtype).removeprefix('torch.')} are not what is recorded")
    if not count:
        return torch.empty(sizes, dtype=dtype, device="cpu")
    return torch.frombuffer(bytearray(memory), dtype=dtype).clone().reshape(sizes)
