"""Objects beside the tensors of a state dict, as ``torch.load(weights_only=True)`` returns them.

Nothing that a file names is imported. The few known names are in tables here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
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
    from collections.abc import Callable

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_SMALL = (1 << 61) - 1
"""Below this, an integer is its own hash, so a set of integers can't be crafted to collide."""

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


class _UnknownError(Exception):
    """Raised for a node of an unknown kind. The message names it."""


def given(node: object, read: Callable[[TensorSpec], torch.Tensor]) -> Any:
    """Return the object that a node of a header describes, with the values of its tensors.

    If torch would refuse the object or a part of it, return an `Unread`.

    Args:
        node: any node of a header's tree except a tensor.
        read: reads the values of a tensor.

    Raises:
        CheckpointError: a tensor's values can't be read.
    """
    try:
        return _Maker(read).made(node)
    except (_UnknownError, RecursionError) as error:
        kind = str(error) if isinstance(error, _UnknownError) else "objects nested too deeply"
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
        raise _UnknownError(f"a tensor without a plain layout ({escape(spec.note)})")
    return torch.empty(0)


class _Maker:
    """A factory of objects. Shared parts stay shared."""

    def __init__(self, read: Callable[[TensorSpec], torch.Tensor]) -> None:
        self._read = read
        self._done: dict[int, Any] = {}
        self._room = _MOST_BYTES

    def made(self, node: Any) -> Any:
        if type(node) in _PLAIN:
            return node
        if id(node) not in self._done:
            self._done[id(node)] = self._new(node)
        return self._done[id(node)]

    def _new(self, node: Any) -> Any:
        if isinstance(node, (torch.Tensor, torch.dtype, torch.device)):
            return node
        if isinstance(node, TensorSpec):
            return self._tensor(node)
        if isinstance(node, dict):
            return self._dict(node)
        if isinstance(node, Set):
            return self._set(node)
        if isinstance(node, list):
            made = self._done[id(node)] = []
            made.extend(map(self.made, node))
            return made
        if isinstance(node, tuple):
            return (torch.Size if isinstance(node, Size) else tuple)(map(self.made, node))
        if isinstance(node, bytearray):
            return node
        return _torch_object(node)

    def _tensor(self, spec: TensorSpec) -> torch.Tensor:
        self._room -= spec.nbytes
        if self._room < 0:
            raise _UnknownError("more tensors than are read for it")
        tensor = self._read(spec)
        if not isinstance(spec, LearnedSpec):
            return tensor
        return nn.Parameter(tensor, spec.requires_grad) if spec.parameter else tensor.requires_grad_()

    def _dict(self, node: dict[Any, Any]) -> dict[Any, Any]:
        kind = node.kind if isinstance(node, Dict) else ""
        if kind not in _DICTS:
            raise _UnknownError(kind)
        made = self._done[id(node)] = _DICTS[kind]()
        for key, value in node.items():
            made[_key(key)] = self.made(value)
        for name, value in (getattr(node, "attributes", None) or {}).items():
            if kind and isinstance(name, str) and name.isidentifier():
                setattr(made, name, self.made(value))
        return made

    def _set(self, node: Set) -> set[Any]:
        if node.frozen:
            raise _UnknownError("builtins.frozenset")
        return {_key(each) for each in node}


def _key(node: Any) -> Any:
    """Return a key that may be hashed: a plain value, or a short tuple of plain values."""
    if type(node) is Stub and type(node.kind) is tuple:  # `Dict.put` did not hash this key
        node = node.kind
    if type(node) is tuple and len(node) < 16:
        return tuple(map(_key, node))
    if type(node) in _PLAIN and not (type(node) is int and abs(node) > _SMALL):
        return node
    raise _UnknownError(_name(node) or "such keys")


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
                return _device(*args)
            case "torch.serialization._get_layout", (str(layout),):
                return _torch_object(Global(layout))
        if name in _LAZY:
            make: Any = _LAZY[name]
            return make(*(each for each in node.args[:1] if type(each) is bool))
    raise _UnknownError(name or "an object")


def _device(*args: Any) -> torch.device:
    try:
        return torch.device(*args)
    except (RuntimeError, TypeError):
        raise _UnknownError("torch.device") from None


def _name(node: object) -> str:
    """Return the name of a class, function or object's class, safe to print."""
    if is_array(node):
        return "numpy.ndarray"
    if isinstance(node, (Stub, Global)):
        return escape(node.name, 80)
    return _STORAGE if isinstance(node, Storage) else ""
