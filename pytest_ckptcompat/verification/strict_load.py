"""Load a state dict strictly into a model without memory, and hear every fault that torch finds."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.tensors.difference import is_strided
from pytest_ckptcompat.tensors.unread import spared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass
class Faults:
    """The lists that the modules fill during one ``load_state_dict``."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def counted(self) -> Faults:
        """Return only the faults that torch reports.

        torch puts a text with the missing keys and one with the unexpected keys before the errors. If the
        load turned out not to be strict, there are none.
        """
        missing = any(text.startswith(_MISSING) for text in self.errors)
        unexpected = any(text.startswith(_UNEXPECTED) for text in self.errors)
        return Faults(
            self.missing if missing else [],
            self.unexpected if unexpected else [],
            [text for text in self.errors if not text.startswith((_MISSING, _UNEXPECTED))],
        )


_MISSING = "Missing key(s) in state_dict: "
_UNEXPECTED = "Unexpected key(s) in state_dict: "


def strict_load(model: nn.Module, state_dict: Mapping[str, Any]) -> tuple[Faults, set[str]]:
    """Return the faults that a strict load names, and the missing and unexpected keys that it tolerates.

    It tolerates some in a model that makes every load of itself a lenient one. `model` is not changed.
    """
    if _is_plain(model, state_dict):
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            return _plain_load(model, state_dict), set()
    trial = meta_copy(model)
    for key, value in state_dict.items():
        if isinstance(value, torch.Tensor) and not (value.is_meta or is_strided(value)):
            _give_memory(trial, key)
    return _heard_load(trial, state_dict)


def _is_plain(model: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Return whether a load changes nothing: all is on meta, and no module has its own loader."""
    tensors = chain(model.parameters(), model.buffers(), state_dict.values())
    return all(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in tensors) and all(
        type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
        and type(module).load_state_dict is nn.Module.load_state_dict
        and type(module).set_extra_state is nn.Module.set_extra_state
        and vars(module).keys().isdisjoint(("_load_from_state_dict", "load_state_dict", "set_extra_state"))
        and not (module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks)
        and not isinstance(module, LazyModuleMixin)
        for module in model.modules()
    )


def _plain_load(model: nn.Module, state_dict: Mapping[str, Any]) -> Faults:
    """Load like ``nn.Module.load_state_dict``, in time linear in the number of keys.

    torch picks each child's keys from all keys of its parent, which takes minutes if a module has ten
    thousand children.
    """
    faults = Faults()
    metadata = getattr(state_dict, "_metadata", None) or {}

    def load(module: nn.Module, local: dict[str, Any], prefix: str) -> None:
        lists = faults.missing, faults.unexpected, faults.errors
        module._load_from_state_dict(local, prefix, metadata.get(prefix[:-1], {}), True, *lists)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in local.items():
            parts.setdefault(key[len(prefix) :].partition(".")[0], {})[key] = value
        for name, child in module._modules.items():
            if child is not None:
                load(child, parts.get(name, {}), f"{prefix}{name}.")

    load(model, dict(state_dict), "")
    return faults


def _give_memory(trial: nn.Module, key: str) -> None:
    """Move a tensor off the meta device, where any layout can be copied into any other."""
    prefix, _, leaf = key.rpartition(".")
    try:
        owner = trial.get_submodule(prefix)
    except AttributeError:
        return
    if (buffer := owner._buffers.get(leaf)) is not None and buffer.is_meta:
        owner._buffers[leaf] = torch.zeros_like(buffer, device="cpu")
    elif (weight := owner._parameters.get(leaf)) is not None and weight.is_meta:
        owner._parameters[leaf] = nn.Parameter(torch.zeros_like(weight, device="cpu"), weight.requires_grad)


def _heard_load(model: nn.Module, state_dict: Mapping[str, Any]) -> tuple[Faults, set[str]]:
    """Load strictly, and listen to the lists that ``load_state_dict`` passes to every module's loader.

    Each load in progress has its own lists: a wrapper may leave the load to the module that it wraps, and a
    module may load a part of itself, strictly or not. The text of the error shows which lists count.
    """
    heard: dict[int, Faults] = {}
    module: Any
    for module in model.modules():
        module._load_from_state_dict = _listening(module._load_from_state_dict, heard)
    try:
        with warnings.catch_warnings(), spared(model, state_dict):
            warnings.simplefilter("ignore")
            model.load_state_dict(state_dict, strict=True)
    except (Exception, SystemExit) as error:
        for faults in heard.values():
            if faults.errors and str(error).endswith("\n\t".join(faults.errors)):
                return faults.counted(), set()
        root = next(iter(heard.values()), Faults())
        return Faults(root.missing, root.unexpected, [*root.errors, load_fault(error)]), set()
    root = next(iter(heard.values()), Faults())
    return Faults(), {*root.missing, *root.unexpected}


def _listening(loader: Callable[..., None], heard: dict[int, Faults]) -> Callable[..., None]:
    def listening_loader(state: Any, prefix: str, metadata: Any, strict: bool, *lists: Any) -> None:
        heard.setdefault(id(lists[0]), Faults(*lists))
        loader(state, prefix, metadata, strict, *lists)

    return listening_loader


def load_fault(error: BaseException) -> str:
    """Describe what ``load_state_dict`` raised, and in which module: in its hook, or its own loader."""
    trace, place = error.__traceback__, None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "load" and code.co_filename == nn.modules.module.__file__:
            place = trace.tb_frame.f_locals
        trace = trace.tb_next
    if place is None:
        return raised(error)
    name = str(place.get("prefix", "")).rstrip(".") or "the model itself"
    return f"loading {escape(name)} ({type(place['module']).__name__}) raised {raised(error)}"
