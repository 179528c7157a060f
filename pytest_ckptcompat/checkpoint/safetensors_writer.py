"""Write a safetensors file as specified: a JSON header, then the values one after the other.

https://huggingface.co/docs/safetensors: little-endian, no gaps, no shared memory.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, BinaryIO

from pytest_ckptcompat.core.escape import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from .written import Value

_NAMES = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64",
    "float32": "F32", "uint32": "U32", "int32": "I32",
    "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_ORDER = list(_NAMES)
"""The widest dtype first, so that every tensor is aligned. The library uses the same order."""


def write_safetensors(file: BinaryIO, values: Mapping[str, Value], metadata: Mapping[str, str]) -> None:
    """Write `values` to `file`.

    The format can't share memory between names. As in ``safetensors.torch.save_model``, a shared tensor is
    written once, under its alphabetically first name, and the metadata maps the other names to it.

    Raises:
        ValueError: the format lacks a dtype, or a key is its reserved name.
    """
    kept: dict[object, str] = {}
    for name in sorted(values):
        kept.setdefault(values[name].same, name)
    aliases = {name: kept[value.same] for name, value in values.items() if kept[value.same] != name}
    dtypes = {name: _dtype(name, values[name].dtype) for name in kept.values()}
    names = sorted(dtypes, key=lambda name: (_ORDER.index(dtypes[name]), name))
    header: dict[str, object] = {"__metadata__": {**aliases, **metadata}} if aliases or metadata else {}
    offset = 0
    for name in names:
        value = values[name]
        ends = [offset, offset + value.nbytes]
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(value.shape), "data_offsets": ends}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        file.writelines(values[name].pieces())


def _dtype(name: str, dtype: torch.dtype) -> str:
    if name == "__metadata__":
        raise ValueError("a tensor can't be called __metadata__ in a safetensors file: write .pth")
    called = str(dtype).removeprefix("torch.")
    if called not in _NAMES:
        raise ValueError(f"{escape(name)} is {called}, which safetensors does not have: write .pth")
    return called
