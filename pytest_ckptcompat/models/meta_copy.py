"""Copy a model to the meta device."""

from __future__ import annotations

import copy
from collections import ChainMap, OrderedDict
from itertools import chain
from typing import Any

import torch
from torch import nn

from pytest_ckptcompat.tensors.parts import is_strided


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the meta device has an equal of it: shape, strides and dtype are all that a load looks at.

    It has none of sparse, nested and quantized tensors, and of what only a subclass knows; and it does not
    mind elements that share memory.
    """
    if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer) or not is_strided(tensor):
        return False
    return all(size < 2 or step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def opaque(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers that are not plain: a load of them is judged by their values."""
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name for name, tensor in named if not (is_plain(tensor) or nn.parameter.is_lazy(tensor))}


_CONTAINERS = (dict, OrderedDict, list, set)


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; ties and hooks are kept.

    Those that the meta device has no equal of are copied as they are; one that can't even be copied is shared
    with the model. So are attributes that can't be copied (locks, open files), and those that are tensors
    that were computed are replaced by others on the meta device.
    """
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = _on_meta(tensor)
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in _CONTAINERS and not value:  # a module has a dozen, and deepcopy takes its time
                memo[id(value)] = type(value)()
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
    if not is_plain(tensor):
        return _copied(tensor)
    if type(tensor.data) is torch.Tensor and tensor.is_meta and tensor.is_contiguous():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # empty_like imports sympy there
    else:
        empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor that is not plain: on meta where its class knows how, else of its values."""
    try:
        if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            empty = torch.empty_like(tensor, device="meta")
            return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    except (NotImplementedError, RuntimeError, TypeError, AttributeError):
        pass
    try:
        return copy.deepcopy(tensor)
    except Exception:
        return tensor
