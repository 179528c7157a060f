"""Copy a model to the meta device."""

from __future__ import annotations

import copy
from collections import ChainMap
from itertools import chain
from typing import Any

import torch
from torch import nn


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; ties and hooks are kept.

    Attributes that can't be copied (locks, open files, tensors that were computed) are shared with the model,
    or, where they are tensors, replaced by others on the meta device.
    """
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = _on_meta(tensor)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        return copy.deepcopy(model, memo | _uncopyable(model, memo))


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """By identity, what stands for those attributes of modules that refuse to be copied."""
    modules = {id(module): module for module in model.modules()}
    known, instead = modules | memo, dict[int, Any]()
    for module in modules.values():
        for value in vars(module).values():
            try:
                copy.deepcopy(value, ChainMap({}, known))  # type: ignore[arg-type]  # any mapping will do
            except Exception:
                instead[id(value)] = _on_meta(value.detach()) if isinstance(value, torch.Tensor) else value
    return instead


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.UninitializedParameter):
        make: Any = nn.UninitializedParameter  # torch's stubs lack its arguments
        return make(tensor.requires_grad, device="meta", dtype=tensor.data.dtype)  # type: ignore[no-any-return]
    if isinstance(tensor, nn.UninitializedBuffer):
        make = nn.UninitializedBuffer
        return make(device="meta", dtype=tensor.data.dtype)  # type: ignore[no-any-return]
    if type(tensor.data) is torch.Tensor and tensor.is_meta and tensor.is_contiguous():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # empty_like imports sympy there
    else:
        empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
