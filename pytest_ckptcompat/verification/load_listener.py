"""Listen to a load: which key is copied into which tensor, and which tensors are written at all."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.tensors.difference import memory
from pytest_ckptcompat.tensors.state_dicts import on_meta
from pytest_ckptcompat.tensors.unread import spared

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


_ASSIGNED = "assign_to_params_buffers"


@dataclass(frozen=True)
class Loading:
    """What a load does to each parameter and persistent buffer, by the model's names.

    Attributes:
        sources: name -> the keys whose tensors were copied into it unchanged, in the order of the copies; a
            tied tensor may have several.
        written: names that were written in any way.
        altered: names that the model's own code wrote, in addition to such copies.
        names: all names to be loaded, whether or not the model's state dict has them.
    """

    sources: Mapping[str, tuple[str, ...]]
    written: frozenset[str]
    altered: frozenset[str]
    names: tuple[str, ...]


def listen(model: nn.Module, state_dict: Mapping[str, Any], missing: Collection[str] = ()) -> Loading | None:
    """Load into a copy without memory and note what is written; return None if the load raises.

    `model` is not changed and no value is read; only the calls that write are noted. `missing` are keys that
    a strict load would miss, so they are not expected to be loaded.
    """
    trial = meta_copy(model)
    before = {name: (tensor, memory(tensor), tensor._version) for name, tensor in loadable(trial)[0].items()}
    state = on_meta(state_dict)
    for module, about in getattr(state, "_metadata", {}).items():
        # torch records there that an earlier load assigned tensors instead of copying them.
        state._metadata[module] = {name: each for name, each in about.items() if name != _ASSIGNED}  # type: ignore[attr-defined]
    with _Listener() as heard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with spared(trial, state):
                trial.load_state_dict(state, strict=False)
        except (Exception, SystemExit):
            return None
    after, _ = loadable(trial)
    given = {memory(value): key for key, value in state.items()}
    sources, written, altered = {}, set(), set()
    for name, (tensor, place, version) in before.items():
        now = after.get(name, tensor)
        if now is not tensor or memory(now) != place:  # replaced, perhaps by the given tensor
            keys = [given[memory(now)]] if memory(now) in given else []
            unheard = not keys
        else:
            copied = heard.copies.get(place, [])
            keys = [given[memory(source)] for source in copied if memory(source) in given]
            unheard = heard.writes[place] > len(keys)
        if keys:
            sources[name] = tuple(keys)
        if unheard:
            altered.add(name)
        if keys or unheard or now._version != version:
            written.add(name)
    names = tuple(name for name in before if name not in missing)
    return Loading(sources, frozenset(written), frozenset(altered), names)


def loadable(model: nn.Module) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return parameters and saved buffers by name, and the names in the model's state dict."""
    saved = {id(value) for value in model.state_dict(keep_vars=True).values()}
    held: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held |= {name: each for name, each in model.named_buffers(remove_duplicate=False) if id(each) in saved}
    held = {name: tensor for name, tensor in held.items() if not nn.parameter.is_lazy(tensor)}
    return held, {name for name, tensor in held.items() if id(tensor) in saved}


class _Listener(TorchFunctionMode):
    """Notes calls that write into a tensor: ``copy_``, ``fill_``, ``tensor[...] = ``."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[object, list[torch.Tensor]] = {}
        self.writes: Counter[object] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        target, source, *_ = (*args, None, None)
        if in_place and isinstance(target, torch.Tensor) and name not in _NO_WRITES:
            self.writes[memory(target)] += 1
            if name == "copy_" and isinstance(source, torch.Tensor) and source.shape == target.shape:
                self.copies.setdefault(memory(target), []).append(source)
        return func(*args, **(kwargs or {}))


_NO_WRITES = {"requires_grad_", "detach_", "share_memory_", "rename_"}
