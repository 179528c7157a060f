"""Objects beside the tensors of a state dict, as ``torch.load(weights_only=True)`` returns them.

Nothing that a file names is imported. The few known names are in tables here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import LearnedSpec, TensorSpec
from pytest_ckptcompat.formats.dcp_objects import UNREAD
from pytest_ckptcompat.formats.pickle_stubs import LOCKED, Dict, Global, Set, Size, Storage, Stub, is_array
from pytest_ckptcompat.tensors.unread import Unread

from .composite import can_compose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_SMALL = (1 << 61) - 1
"""Below this, an integer is its own hash, so a set of integers can't be crafted to collide."""

_DEEPEST_KEY = 3
_MOST_BYTES = 1 << 30
_STORAGE = "a bare storage"
_LAZY = {
    "torch.nn.parameter.UninitializedParameter": nn.UninitializedParameter,
    "torch.nn.parameter.UninitializedBuffer": nn.UninitializedBuffer,
}
_DICTS: dict[str, Callable[[], dict[Any, Any]]] = {
    "": dict,
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
}


class UnknownError(Exception):
    """Raised for a node of an unknown kind. The message names it."""


def given(node: object, read: Callable[[TensorSpec], torch.Tensor]) -> Any:
    """Return the object that a node of a header describes, with the values of its tensors.

    If torch would refuse the object or a part of it, return an `Unread`.
    """
    try:
        return Maker(read).made(node)
    except (UnknownError, RecursionError) as error:
        kind = str(error) if isinstance(error, UnknownError) else "objects nested too deeply"
        if kind == _STORAGE:
            return Unread.of("torch.UntypedStorage", f"it holds {kind}, which is not read")
        if kind in (LOCKED, UNREAD):
            return Unread.of("", f"it comes from {LOCKED}" if kind == LOCKED else "it is too large")
        why = f"it holds {kind}, which torch.load(weights_only=True) refuses"
        remedy = "; convert it with torch.from_numpy where the file is written" if is_array(node) else ""
        return Unread.of(_name(node), why + remedy)


def withheld(node: object) -> str:
    """Return why `given` would return an `Unread` for a node or tensor, or ``""``."""
    made = node if isinstance(node, (Unread, *_PLAIN)) else given(node, _composable)
    return made.why if isinstance(made, Unread) else ""


def _composable(spec: TensorSpec) -> torch.Tensor:
    if spec.note and not can_compose(spec):
        raise UnknownError(f"a tensor without a plain layout ({escape(spec.note)})")
    return torch.empty(0)


class Maker:
    """A factory of the objects that a header's tree describes. Shared parts stay shared."""

    def __init__(self, read: Callable[[TensorSpec], torch.Tensor]) -> None:
        self._read = read
        self._done: dict[int, Any] = {}
        self._room = _MOST_BYTES

    def made(self, node: Any) -> Any:
        """Return the object for a node; `UnknownError` if torch would refuse it."""
        if type(node) in _PLAIN:
            return node
        if id(node) not in self._done:
            self._done[id(node)] = self._new(node)
        return self._done[id(node)]

    def _new(self, node: Any) -> Any:
        made: Any
        if isinstance(node, (TensorSpec, torch.Tensor)):
            return self._tensor(node)
        if isinstance(node, dict):
            made = self._done[id(node)] = self._empty(node.kind if isinstance(node, Dict) else "")
            for key, value in self._entries(node):
                made[key] = value
            if type(made) is not dict:
                attributes = getattr(node, "attributes", None) or {}
                named = {key: part for key, part in attributes.items() if isinstance(key, str)}
                vars(made).update(self._entries(named))
            return made
        if isinstance(node, (Set, set)):
            if isinstance(node, Set) and node.frozen:
                raise UnknownError("builtins.frozenset")
            return {plain_key(each) for each in node}
        if isinstance(node, list):
            made = self._done[id(node)] = []
            made.extend(self._elements(node))
            return made
        if isinstance(node, tuple):
            return (torch.Size if isinstance(node, Size) else tuple)(self._elements(node))
        if isinstance(node, (bytearray, torch.dtype, torch.device)):
            return node
        return _torch_object(node)

    def _tensor(self, node: TensorSpec | torch.Tensor) -> Any:
        if isinstance(node, torch.Tensor):
            return node
        self._room -= node.nbytes
        if self._room < 0:
            raise UnknownError("more tensors than are read for it")
        tensor = self._read(node)
        if not isinstance(node, LearnedSpec):
            return tensor
        return nn.Parameter(tensor, node.requires_grad) if node.parameter else tensor.requires_grad_()

    def _empty(self, kind: str) -> dict[Any, Any]:
        if kind not in _DICTS:
            raise UnknownError(kind)
        return _DICTS[kind]()

    def _entries(self, node: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
        return ((plain_key(key), self.made(value)) for key, value in node.items())

    def _elements(self, node: Sequence[Any]) -> Iterable[Any]:
        return map(self.made, node)


def plain_key(node: Any, depth: int = 0) -> Any:
    """Return a key that may be hashed: a plain value, or a short tuple of keys, at most three levels deep."""
    if type(node) is Stub and type(node.kind) is tuple:  # `Dict.put` did not hash this key
        node = node.kind
    if type(node) is tuple and len(node) < 16 and depth < _DEEPEST_KEY:
        return tuple(plain_key(each, depth + 1) for each in node)
    if type(node) in _PLAIN and not (type(node) is int and abs(node) > _SMALL):
        return node
    raise UnknownError(_name(node) or "such keys")


def _torch_object(node: Any) -> Any:
    """Return a dtype, device, layout, quantization scheme, or parameter without a shape."""
    name = _name(node)
    if isinstance(node, Global):
        found = getattr(torch, name.removeprefix("torch."), None) if name.startswith("torch.") else None
        if isinstance(found, (torch.dtype, torch.layout, torch.qscheme)):
            return found
    elif isinstance(node, Stub) and type(node.args) is tuple:
        match name, node.args:
            case "torch.device", (str(), *_) as args if node.state is None:
                with suppress(RuntimeError, TypeError):
                    return torch.device(*args)
            case "torch.serialization._get_layout", (str(layout),):
                return _torch_object(Global(layout))
        if name in _LAZY:
            make: Any = _LAZY[name]
            return make(*(each for each in node.args[:1] if type(each) is bool))
    raise UnknownError(name or "an object")


def _name(node: object) -> str:
    """Return the name of a class, function or object's class, safe to print."""
    if is_array(node):
        return "numpy.ndarray"
    if isinstance(node, (Stub, Global)):
        return escape(node.name, 80)
    return _STORAGE if isinstance(node, Storage) else ""
