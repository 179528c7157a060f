"""Listen to a load: which key is copied into which tensor, and which tensors are written at all."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.tensors.unread import spared

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True)
class Loading:
    """What a load does to each parameter and persistent buffer, by the model's names.

    Attributes:
        sources: name -> the keys whose tensors were copied into it unchanged, in the order of the copies; a
            tied tensor may have several.
        written: names that were written in any way.
        altered: names that the model's own code wrote, in addition to such copies.
        names: all names to be loaded, whether or not the model's state dict has them.
        saved: the names that the model's state dict has.
    """

    sources: Mapping[str, tuple[str, ...]]
    written: frozenset[str]
    altered: frozenset[str]
    names: tuple[str, ...]
    saved: frozenset[str]


def listen(model: nn.Module, state_dict: Mapping[str, Any], missing: Collection[str] = ()) -> Loading | None:
    """Load into a copy without memory and note what is written; return None if the load raises.

    `model` is not changed and no value is read; only the calls that write are noted. `missing` are keys that
    a strict load would miss, so they are not expected to be loaded.
    """
    trial = meta_copy(model)
    held, saved = _held(trial)
    before = {name: (tensor, _place(tensor), tensor._version) for name, tensor in held.items()}
    state = _schema(state_dict)
    with _Listener() as heard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with spared(trial, state):
                trial.load_state_dict(state, strict=False)
        except (Exception, SystemExit):
            return None
    after, _ = _held(trial)
    copies = _copies(heard, {id(value): key for key, value in state.items()})
    given = {_place(value): key for key, value in state.items() if isinstance(value, torch.Tensor)}
    sources, written, altered = {}, set(), set()
    for name, (tensor, place, version) in before.items():
        now = after.get(name, tensor)
        if now is not tensor or _place(now) != place:  # replaced, perhaps by the given tensor
            key = given.get(_place(now))
            keys = [] if key is None else [key]
            unheard = key is None
        else:
            keys = copies.get(place, [])
            unheard = heard.writes[place] > len(keys)
        if keys:
            sources[name] = tuple(keys)
        if unheard:
            altered.add(name)
        if keys or unheard or now._version != version:
            written.add(name)
    names = tuple(name for name in before if name not in missing)
    return Loading(sources, frozenset(written), frozenset(altered), names, frozenset(saved))


def _copies(heard: _Listener, keys: Mapping[int, str]) -> dict[_Place, list[str]]:
    """Return place -> the keys that were copied there unchanged."""
    copies: dict[_Place, list[str]] = {}
    for target, source in heard.copies:
        if id(source) in keys and target.shape == source.shape:
            copies.setdefault(_place(target), []).append(keys[id(source)])
    return copies


def _held(model: nn.Module) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return parameters and saved buffers by name, and the names in the model's state dict."""
    in_state = {id(value) for value in model.state_dict(keep_vars=True).values()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {
        name: each for name, each in model.named_buffers(remove_duplicate=False) if id(each) in in_state
    }
    held = {
        name: tensor for name, tensor in (parameters | buffers).items() if not nn.parameter.is_lazy(tensor)
    }
    return held, {name for name, tensor in held.items() if id(tensor) in in_state}


def _schema(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Return the state dict with a separate meta tensor for each key, so that copies can be told apart."""
    schema: OrderedDict[str, Any] = OrderedDict(
        (
            key,
            torch.empty(value.shape, dtype=value.dtype, device="meta")
            if isinstance(value, torch.Tensor)
            else value,
        )
        for key, value in state_dict.items()
    )
    if (metadata := getattr(state_dict, "_metadata", None)) is not None:
        # torch records there that an earlier load assigned tensors instead of copying them.
        schema._metadata = OrderedDict(  # type: ignore[attr-defined]
            (module, {name: each for name, each in about.items() if name != "assign_to_params_buffers"})
            for module, about in metadata.items()
        )
    return schema


_Place = tuple[int, int, torch.Size]


def _place(tensor: torch.Tensor) -> _Place:
    """Return where a tensor is in memory: ``param.data`` is another object in the same place."""
    try:
        return int(tensor.untyped_storage()._cdata), int(tensor.storage_offset()), tensor.shape
    except (NotImplementedError, RuntimeError):  # a subclass without a storage of its own
        return id(tensor), 0, tensor.shape


class _Listener(TorchFunctionMode):
    """Notes calls that write into a tensor: ``copy_``, ``fill_``, ``tensor[...] = ``."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.writes: Counter[_Place] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place and args and isinstance(args[0], torch.Tensor) and name not in _NO_WRITES:
            self.writes[_place(args[0])] += 1
            if name == "copy_" and len(args) > 1 and isinstance(args[1], torch.Tensor):
                self.copies.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))


_NO_WRITES = {"requires_grad_", "detach_", "share_memory_", "rename_"}
