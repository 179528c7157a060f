"""Tensors of every dtype and layout that torch can save."""

from __future__ import annotations

import io
import warnings

import torch


def dtypes() -> list[torch.dtype]:
    """Every dtype that this torch can save as a plain tensor."""
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted((dtype for dtype in found if _can_be_saved(dtype)), key=str)


def typed_dtypes() -> list[torch.dtype]:
    """Those that have a storage class of their own; torch.load knows only these in the legacy layout."""
    return [dtype for dtype in dtypes() if dtype not in torch.storage._new_dtypes()]


def of_dtype(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor of random bits."""
    generator = torch.Generator().manual_seed(seed)
    numel = int(torch.tensor(shape).prod()) if shape else 1
    highest = 2 if dtype == torch.bool else 256
    data = torch.randint(0, highest, (numel * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.empty(0, dtype=dtype).set_(data.untyped_storage(), 0, shape)


def layouts() -> dict[str, torch.Tensor]:
    """Views that a state dict may hold."""
    base = torch.arange(240.0).reshape(10, 24)
    cube = torch.arange(2 * 3 * 4 * 5, dtype=torch.int16).reshape(2, 3, 4, 5)
    return {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "row": base[3],
        "column": base[:, 5],
        "block": base[2:5, 7:9],
        "steps": base[::3, ::5],
        "expanded": torch.randn(3, 1, generator=torch.Generator().manual_seed(0)).expand(3, 7),
        "expanded whole": torch.ones(1).expand(2, 2),
        "scalar": torch.tensor(2.5),
        "scalar inside": base[4, 4],
        "empty": torch.empty(0),
        "empty rows": torch.empty(0, 3),
        "empty inside": base[:, 4:4],
        "channels last": cube.to(memory_format=torch.channels_last),
        "permuted": cube.permute(3, 1, 0, 2),
        "one element": torch.ones(1, 1, 1),
        "overlapping": torch.arange(8.0).unfold(0, 4, 1),
    }


def _can_be_saved(dtype: torch.dtype) -> bool:
    try:
        torch.save(of_dtype(dtype, 1), io.BytesIO())
    except (KeyError, RuntimeError, NotImplementedError):
        return False
    return True
