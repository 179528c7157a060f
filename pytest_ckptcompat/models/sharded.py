"""Models that shard themselves over ranks (``fully_shard``, tensor parallel).

Such a model can't be copied, and its tensors are parts. A stand-in has the same names with whole tensors.
"""

from __future__ import annotations

import os
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOW = "the model shards itself; start with torchrun"
"""Why the values of such a model are not loaded in a single process."""

_WRAPPER = "FullyShardedDataParallel"
_RANKS = 8
_NO_RANKS = re.compile(
    r"process group|init_process_group|device ?mesh|FSDP needs|"
    r"\b(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)\b",
    re.IGNORECASE,
)
_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


class Sharded(nn.Module):
    """A stand-in for a model that shards itself: a tree of modules that compute nothing."""


class _Stateful(nn.Module):
    """A module of that tree that stores extra state of any kind."""

    _state: Any = None

    def get_extra_state(self) -> Any:
        return self._state

    def set_extra_state(self, state: Any) -> None:
        self._state = state


def is_sharded(model: nn.Module) -> bool:
    """Return whether any parameter is distributed over several ranks."""
    return any(hasattr(each, "full_tensor") for each in model.parameters())


def is_flattened(model: nn.Module) -> bool:
    """Return whether any part is a ``FullyShardedDataParallel``, which flattens several parameters to one."""
    return any(type(module).__name__ == _WRAPPER for module in model.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without the wrappers whose parameters `simulated_ranks` kept whole."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = _inside(child)
    return _inside(model)


def _inside(module: nn.Module) -> nn.Module:
    while type(module).__name__ == _WRAPPER and "_handle" not in vars(module):
        module = module.get_submodule("_fsdp_wrapped_module")
    return module


def wants_ranks(error: BaseException) -> bool:
    """Return whether a constructor failed because there are no other ranks."""
    return not has_ranks() and bool(_NO_RANKS.search(f"{error}"))


def has_ranks() -> bool:
    """Return whether this process belongs to an initialised process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def stand_in(model: nn.Module, *, values: bool = False) -> Sharded:
    """Return a stand-in with the same names, shapes, dtypes and ties.

    Args:
        model: a model that is sharded or on the meta device.
        values: whether to gather the values, which every rank has to do. Otherwise the stand-in is on the
            meta device.
    """
    root = Sharded()
    made: dict[int, torch.Tensor] = {}
    parameters = {id(each) for each in model.parameters()}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            _hold(root, key, tensor)
            continue
        if id(tensor) not in made:
            whole = _whole(tensor) if values else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            made[id(tensor)] = (
                nn.Parameter(whole, tensor.requires_grad) if id(tensor) in parameters else whole
            )
        _put(root, key, made[id(tensor)])
    return root


def load_sharded(model: nn.Module, state_dict: Mapping[str, Any], *, strict: bool) -> None:
    """Load whole tensors into a sharded model. Every rank has to call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=strict)
    set_model_state_dict(model, dict(state_dict), options=options)


@contextmanager
def simulated_ranks(size: int = _RANKS) -> Iterator[None]:
    """Simulate several ranks inside the block, with this process as the first.

    A constructor can shard its model over them. Nothing is sent, and calls of ``init_process_group`` are
    ignored.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    group, made = torch.distributed, DeviceMesh.__init__

    def on_cpu(self: Any, device_type: str, *arguments: Any, **more: Any) -> None:
        made(self, device_type if torch.cuda.is_available() else "cpu", *arguments, **more)

    with mock.patch.dict(os.environ, _ENVIRONMENT, WORLD_SIZE=str(size)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
        try:
            with (
                mock.patch.object(group, "init_process_group", return_value=None),
                mock.patch.object(DeviceMesh, "__init__", on_cpu),
                mock.patch.object(FullyShardedDataParallel, "__init__", _kept_whole),
                mock.patch.object(torch.cuda, "set_device", return_value=None),
            ):
                yield
        finally:
            group.destroy_process_group()


def _kept_whole(self: nn.Module, module: nn.Module, *_: Any, **more: Any) -> None:
    """Wrap a module as ``FullyShardedDataParallel`` does, and leave its parameters as they are."""
    nn.Module.__init__(self)
    vars(self).update(training_state=None, _use_orig_params=True)
    self._fsdp_wrapped_module = module


def more_ranks(error: BaseException) -> int:
    """Return how many ranks a constructor asked for if it failed with another number, or 0."""
    if not re.search(r"world.?size", f"{error}", re.IGNORECASE):
        return 0
    asked = {int(number) for number in re.findall(r"\b\d{1,6}\b", f"{error}")} - {_RANKS}
    return max(asked, default=0)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().cpu()


def _module(root: nn.Module, path: list[str]) -> nn.Module:
    """Return the module at a path. Missing modules are made."""
    for name in path:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root


def _hold(root: nn.Module, key: str, state: Any) -> None:
    """Store extra state in the module that owns it."""
    module = _module(root, key.split(".")[:-1])
    module.__class__ = type(type(module).__name__, (_Stateful, type(module)), {})
    module._state = state


def _put(root: nn.Module, key: str, tensor: torch.Tensor) -> None:
    *path, leaf = key.split(".")
    module = _module(root, path)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)
