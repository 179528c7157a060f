"""Make all tensors of a model real: in memory instead of on the meta device or in a file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_ckptcompat.core.errors import MisfitError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.models.meta_copy import like
from pytest_ckptcompat.tensors.deferred import DeferredTensor
from pytest_ckptcompat.tensors.nested import mapped, tensors


def give_memory(module: nn.Module) -> None:
    """Give memory to tensors on the meta device. Ties are kept.

    Raises:
        MisfitError: a tensor on the meta device is not in the state dict.
    """
    given: dict[int, torch.Tensor] = {}
    saved = {id(value) for value in module.state_dict(keep_vars=True).values()}
    for path, owner in module.named_modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in saved:
                    key = f"{path}.{name}".removeprefix(".")
                    raise MisfitError(
                        f"{escape(key)} is on the meta device and in no state dict, so that it would have no "
                        f"values: build the model on the CPU"
                    )
                if id(tensor) not in given:
                    given[id(tensor)] = like(tensor, torch.empty_like(tensor, device="cpu"))
                held[name] = given[id(tensor)]


def read_deferred(module: nn.Module) -> None:
    """Read the deferred tensors of a state dict that a model's own loader kept."""
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers, vars(owner)):
            for name, value in held.items():
                if name not in _OF_MODULES and _is_deferred(value):
                    held[name] = mapped(value, _read)


_OF_MODULES = {"_parameters", "_buffers", "_modules"}


def _is_deferred(value: Any) -> bool:
    """Return whether a tensor is deferred, or one in nested containers."""
    if isinstance(value, (dict, list, tuple)):
        return any(isinstance(tensor, DeferredTensor) for _, tensor in tensors(value))
    return isinstance(value, DeferredTensor)


def _read(tensor: torch.Tensor) -> torch.Tensor:
    return like(tensor, tensor.read()) if isinstance(tensor, DeferredTensor) else tensor
