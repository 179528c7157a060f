"""Build and load a model without drawing the random numbers that loading overwrites.

Drawing them takes longer than reading a checkpoint. Building on meta instead is not safe, because values that
the constructor computes, and references to its tensors, stay in attributes, closures, lists and arrays. So
the constructor runs with real memory, and everything that depends on undrawn numbers is tracked by its
storage (taint tracking). If any of it is read, or still exists after loading, the model has to be built as
usual.
"""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_ckptcompat.tensors.seeds import DRAWN

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = 64 << 20
"""The size of weights in bytes above which drawing random ones takes noticeable time."""

_ATEN = torch.ops.aten
_T = torch.Tensor


def skeleton(build: Callable[[], nn.Module], load: Callable[[nn.Module], object]) -> nn.Module | None:
    """Build a model and load it, without drawing the random numbers that loading overwrites.

    Args:
        build: returns the model, and seeds the generators if the result should be reproducible.
        load: writes the checkpoint's values into it.

    Returns:
        The model, with the same bits as one that was built and loaded as usual. None if that can't be
        determined, or if `build` or `load` raised. The caller then builds and loads a new model as usual.
    """
    undrawn = Undrawn()
    try:
        with undrawn:
            model = build()
            saved = tree_leaves(dict(model.state_dict(keep_vars=True)))
        if undrawn.left(but=saved):
            return None  # loading can't overwrite it
        with undrawn:
            load(model)
    except (Exception, SystemExit, _Seen):
        return None
    return None if undrawn.seen or undrawn.left() else model


class _Seen(BaseException):
    """Raised if something depends on an undrawn number. Constructors would catch an `Exception`."""


class Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """A mode in which random numbers are not drawn, and all memory that depends on them is tracked.

    Attributes:
        seen: whether something read such memory, or could have read it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes longer than drawing

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False
        self._lacking: dict[int, StorageWeakRef] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_truncated())
            stack.enter_context(_Calls(self))
            super().__enter__()  # type: ignore[no-untyped-call]
            stack.push(super().__exit__)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.__exit__(*raised)  # type: ignore[arg-type]

    def left(self, but: Any = ()) -> bool:
        """Return whether memory without its values is still in use, except that of the tensors in `but`."""
        known = set(map(_place, _tensors(but)))

        def in_use() -> bool:
            lacking = self._lacking.items()
            return any(place not in known and not storage.expired() for place, storage in lacking)  # type: ignore[no-untyped-call]

        if in_use():
            gc.collect()  # it may only be in a reference cycle
        return in_use()

    def lacks(self, values: Any) -> bool:
        """Return whether any tensor in `values` (also in nested containers) lacks its values."""
        return any(_place(each) in self._lacking for each in _tensors(values))

    def stop(self) -> None:
        """Give up, because the caller is about to read an undrawn value."""
        self.seen = True
        raise _Seen

    def filled(self, tensor: torch.Tensor) -> None:
        """Record that a whole tensor was written. If it fills its storage, the storage has its values now."""
        if tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() and _dense(tensor):
            self._lacking.pop(_place(tensor), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self.stop()  # it may run other operations that are not seen here
        random = torch.Tag.nondeterministic_seeded in func.tags
        if not random and not self.lacks((args, kwargs)):
            return func(*args, **kwargs)
        if not _TELLING.isdisjoint(func.tags) or not all(map(_plain, _tensors((args, kwargs)))):
            self.stop()
        try:
            result = self._spared(func, args, kwargs) if random or _is_scaling(func, args, kwargs) else None
            if result is None:
                result = func(*args, **kwargs)
        except Exception:
            self.stop()  # perhaps it would not have raised
        if func is _ATEN.copy_.default and not self.lacks(args[1]):
            self.filled(args[0])
        else:
            self._note(result, _written(func, args, kwargs))
        return result

    def _spared(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Return memory that is not filled, or None for an operation that is rarely large."""
        if func not in _FACTORIES and func.overloadpacket not in _FILLS | _SCALINGS:
            return None
        nothing = func(_nothing(args[0]), *args[1:], **kwargs)  # raises the same errors
        if kwargs.get("generator") is not None or nothing.dtype not in DRAWN:
            return None  # the generator's state would show that nothing was drawn
        spared: torch.Tensor = _FACTORIES[func](*args, **kwargs) if func in _FACTORIES else args[0]
        return spared

    def _note(self, *results: Any) -> None:
        """Record that an operation's results lack their values."""
        for value in tree_leaves(results):
            if not isinstance(value, torch.Tensor) or not _plain(value):
                if value is not None:
                    self.stop()  # a number, say
                continue
            if value.numel():
                self._lacking[_place(value)] = StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]


class _Calls(TorchFunctionMode):
    """A mode that notices access to a tensor's memory, and values that are read straight into it."""

    def __init__(self, undrawn: Undrawn) -> None:
        super().__init__()
        self._undrawn = undrawn

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SHOWING and self._undrawn.lacks(args):
            self._undrawn.stop()
        result = func(*args, **kwargs)
        if func is _T.copy_ and not self._undrawn.lacks(args[1:]) and _plain(args[0]):
            self._undrawn.filled(args[0])
        return result


def _truncated() -> AbstractContextManager[Any]:
    """Skip truncated normal values too, which torch 2.13 draws again until it sees that they fit."""
    init: Any = nn.init
    original = init._no_grad_trunc_normal_

    @torch.no_grad()
    def fill(tensor: torch.Tensor, *args: Any, generator: Any = None) -> Any:
        if generator is not None:
            return original(tensor, *args, generator=generator)
        original(tensor.new_empty(0), *args)  # raises the same errors
        return tensor.normal_()

    return mock.patch.object(init, "_no_grad_trunc_normal_", fill)


_SHOWING = {
    *(_T.numpy, _T.__array__, _T.tolist, _T.data_ptr, _T.__dlpack__, _T.untyped_storage, _T.storage),
    *(_T._typed_storage, _T.share_memory_, _T.__reduce_ex__, _T.__deepcopy__, _T.__repr__, _T.__format__),
}
_TELLING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_FILLS = {_ATEN.uniform_, _ATEN.normal_, _ATEN.exponential_, _ATEN.log_normal_, _ATEN.cauchy_}
_FACTORIES = {
    _ATEN.rand.default: _ATEN.empty.memory_format,
    _ATEN.randn.default: _ATEN.empty.memory_format,
    _ATEN.rand_like.default: _ATEN.empty_like.default,
    _ATEN.randn_like.default: _ATEN.empty_like.default,
}
_SCALINGS = {_ATEN.mul_, _ATEN.div_, _ATEN.add_, _ATEN.sub_, _ATEN.clamp_, _ATEN.erfinv_}
"""Operations with which initialisers scale or truncate drawn values."""


def _is_scaling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    numbers = [each for each in (*args[1:], *kwargs.values()) if each is not None]
    return func.overloadpacket in _SCALINGS and all(isinstance(each, (int, float)) for each in numbers)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes to."""
    arguments = func._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    return [given.get(each.name) for each in arguments if each.alias_info and each.alias_info.is_write]


def _nothing(value: Any) -> Any:
    """Return an empty tensor of the same dtype for a tensor, or an empty size for a size."""
    return value.new_empty(0) if isinstance(value, torch.Tensor) else [0]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def _plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is strided and does not override torch's operations."""
    dispatch = type(tensor).__torch_dispatch__
    return tensor.layout is torch.strided and dispatch is torch._C._disabled_torch_dispatch_impl


def _place(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0  # it has no storage


def _dense(tensor: torch.Tensor) -> bool:
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    return any(tensor.is_contiguous(memory_format=each) for each in formats)
