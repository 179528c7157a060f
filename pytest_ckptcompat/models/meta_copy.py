"""Copy a model to the meta device."""

from __future__ import annotations

import copy
from collections import ChainMap, OrderedDict
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import nn

from pytest_ckptcompat.tensors.difference import is_strided


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a meta tensor can represent a tensor when a state dict is loaded.

    False for sparse, nested and quantized tensors, for subclasses, and for tensors whose elements share
    memory, which loading refuses but the meta device does not notice.
    """
    if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer) or not is_strided(tensor):
        return False
    return all(size < 2 or step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def opaque(model: nn.Module) -> set[str]:
    """Return the names of parameters and buffers that are not plain, whose loading depends on values."""
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name for name, tensor in named if not (is_plain(tensor) or nn.parameter.is_lazy(tensor))}


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the values as a parameter if the tensor is one."""
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy with parameters and buffers on the meta device. Ties and hooks are kept.

    Tensors that are not plain (see `is_plain`) are copied with their values if their class has no meta
    version, or shared with the model if they can't be copied. Attributes that can't be copied (locks, open
    files) are shared too, but computed tensors among them are replaced by meta tensors.
    """
    memo: dict[int, Any] = {id(each): _on_meta(each) for each in chain(model.parameters(), model.buffers())}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in _CONTAINERS and not value:  # a module has a dozen, and deepcopy is slow
                memo[id(value)] = type(value)()
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        return copy.deepcopy(model, memo | _uncopyable(model, memo))


_CONTAINERS = (dict, OrderedDict, list, set)


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Return id -> replacement for attributes of modules that can't be copied."""
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
    if nn.parameter.is_lazy(tensor):
        make: Any = type(tensor)  # torch's stubs lack its arguments
        trained = {"requires_grad": tensor.requires_grad} if isinstance(tensor, nn.Parameter) else {}
        return make(**trained, device="meta", dtype=tensor.data.dtype)  # type: ignore[no-any-return]
    if not is_plain(tensor):
        return _copied(tensor)
    if type(tensor.data) is torch.Tensor and tensor.is_meta and tensor.is_contiguous():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # empty_like imports sympy there
    else:
        empty = torch.empty_like(tensor, device="meta")
    return like(tensor, empty)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor that is not plain: on meta if its class can do that, else with its values."""
    with suppress(NotImplementedError, RuntimeError, TypeError, AttributeError):
        if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            return like(tensor, torch.empty_like(tensor, device="meta"))
    try:
        return copy.deepcopy(tensor)
    except Exception:
        return tensor
