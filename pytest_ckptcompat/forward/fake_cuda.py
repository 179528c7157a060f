"""A simulated CUDA device: fake tensors, and a copy of the model with fake tensors that takes no memory."""

from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_ckptcompat.tensors.nested import mapped, moved

from .cuda_rules import Autocast, refuse
from .fake_tensors import Fakes, simulated
from .torch_patches import simulated_cuda

if TYPE_CHECKING:
    from collections.abc import Callable


class Unrehearsable(Exception):  # noqa: N818  # it says nothing against the model
    """Raised if fake tensors can't determine whether the model works. The message says why."""


class Card(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """A mode in which tensors are fake: they have shapes, dtypes and devices, but no values and no memory.

    Attributes:
        device: the simulated device, such as ``cuda:0``; ``cpu`` to rehearse the CPU.
    """

    supports_higher_order_operators = True

    def __init__(self, device: str | torch.device = "cuda:0") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        device = torch.device(device)
        self.device = device if device.type == "cpu" else torch.device("cuda", device.index or 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first mode imports torch's compiler, which emits warnings
            self._fakes = Fakes(self.device)
        self._autocast = Autocast()
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._fakes)
            stack.enter_context(enable_python_dispatcher())
            stack.enter_context(simulated_cuda(self.device))
            stack.enter_context(self._autocast)
            super().__enter__()  # type: ignore[no-untyped-call]
            stack.push(super().__exit__)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.__exit__(*raised)  # type: ignore[arg-type]

    def copy(self, model: nn.Module) -> nn.Module:
        """Return a copy of `model`, moved to the device by its own ``to``. `model` is not changed.

        Every tensor of the copy is fake, and tied parameters stay tied. Tensors that are plain attributes
        stay where ``to`` leaves them. Call this outside ``with``.

        Raises:
            Unrehearsable: the model can't be copied, or has tensors that fake tensors can't simulate.
        """
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise Unrehearsable(f"{name or 'the model'} is compiled by TorchScript")
            if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
                # A kernel that gets a fake tensor beside its packed weights may end the process.
                raise Unrehearsable(f"{name or 'the model'} holds weights packed for quantized kernels")
        originals: dict[str, torch.Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        # Module.to swaps fake parameters in place, and fails if torch itself has a weak reference to one. It
        # simply replaces parameters that become fake while they are moved.
        memo: dict[int, Any] = {}
        for name, tensor in originals.items():
            memo.setdefault(id(tensor), _like(tensor, torch.device("meta"), name))
        with self, _FakeCopies(self):
            try:
                copied = copy.deepcopy(model, memo)
            except Unrehearsable:
                raise
            except Exception as error:
                raise Unrehearsable(f"the model can't be copied: {error}") from error
            copied.to(self.device)
            self._copies.clear()
            self._settle(copied, originals)
        return copied

    def batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a batch, moved to the device as in the real forward pass. Call this inside ``with``."""
        args, kwargs = mapped((args, kwargs), self.fake)
        return moved(args, self.device), moved(kwargs, self.device)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor like a real one, on the same kind of device (the CPU for a meta tensor).

        Call this inside ``with``.
        """
        if isinstance(tensor, FakeTensor):
            return tensor
        return _like(tensor, self.device if tensor.is_cuda else torch.device("cpu"))

    def _settle(self, copied: nn.Module, originals: dict[str, torch.Tensor]) -> None:
        """Restore ties and attributes of moved tensors, and remember which fake replaces which tensor."""
        for name, original in originals.items():
            path, _, leaf = name.rpartition(".")
            owner = copied.get_submodule(path)
            registry: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
            if registry.get(leaf) is None:
                continue
            _, fake = self._copies.setdefault(id(original), (original, self.fake(registry[leaf])))
            registry[leaf] = fake
            for key, value in vars(original).items():
                fake.__dict__.setdefault(key, value)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        was_busy, self._fakes.busy = self._fakes.busy, True
        try:
            args, kwargs = _changed((args, kwargs), self._fake_of_original)
            if cast := self._autocast.of_operation(func):
                args, kwargs = _changed((args, kwargs), cast)
            refuse(func, args, kwargs, self.device)
            args, kwargs = _changed((args, kwargs), _on_meta)
            result = func(*args, **kwargs)
        finally:
            self._fakes.busy = was_busy
        return _changed(result, simulated)

    def _fake_of_original(self, value: Any) -> Any:
        """Return the fake for a tensor of the original model, which a closure may still hold."""
        return self._copies.get(id(value), (None, value))[1]


class _FakeCopies(TorchFunctionMode):
    """A mode in which real tensors become fake when they are copied or moved to another device."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), self._card.fake(tensor))
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]  # how a parameter copies itself
            return self._card.fake(args[0]).detach()
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            args = (self._card.fake(args[0]), *args[1:])
        return func(*args, **kwargs)


def _like(tensor: torch.Tensor, device: torch.device, name: str = "a tensor") -> torch.Tensor:
    """Return an empty tensor or parameter like `tensor`.

    Raises:
        Unrehearsable: a fake tensor can't simulate it.
    """
    if nn.parameter.is_lazy(tensor):
        raise Unrehearsable(f"{name} has no shape before the first forward pass")
    if _computes_itself(type(tensor)):
        raise Unrehearsable(f"{name} is a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        raise Unrehearsable(f"{name} is a {kind.removeprefix('torch.')} tensor")
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _computes_itself(kind: type[torch.Tensor]) -> bool:
    """Return whether a tensor class overrides operations (DTensor, quantized weights)."""
    function = getattr(kind.__torch_function__, "__func__", kind.__torch_function__)
    inherited = vars(torch.Tensor)["__torch_function__"].__func__
    disabled = torch._C._disabled_torch_function_impl
    return function not in (inherited, disabled) or (
        kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    )


def _on_meta(value: Any) -> Any:
    """Replace ``cuda`` by ``meta``, because the fakes really are on meta."""
    return torch.device("meta") if isinstance(value, torch.device) and value.type == "cuda" else value


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every value in the arguments or results of an operation (faster than a general tree map)."""
    if isinstance(value, (tuple, list)):
        return type(value)(_changed(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    return change(value)
