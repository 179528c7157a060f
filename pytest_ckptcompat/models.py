"""The model under test: named, built for real or on the meta device, copied without its memory."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections import ChainMap
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import memory
from .forward.seeds import DRAWN, seeded
from .keys import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class ModelError(Exception):
    """The model could not be imported or built; the message says what was tried and what it raised."""


@dataclass(frozen=True)
class Blueprint:
    """What a ``model=`` argument stands for: a name to print, and a way to build it any number of times."""

    name: str
    make: Callable[[], Any]

    def build(self, seed: int = 0) -> nn.Module:
        """A real model on the CPU, its random initialisation seeded.

        Raises:
            ModelError: the callable raised, exited, or gave something that is no ``nn.Module``.
        """
        with seeded(seed):
            return self._made()

    def schema(self) -> nn.Module:
        """The model on the meta device: every shape and dtype, no memory.

        A model whose constructor computes with values (``.item()``, ``.tolist()``) can't be built there, and
        one that goes on where torch lacks an operation there may lack parameters (``orthogonal`` does). Such
        a model is built for real, if memory allows, and its parameters are then replaced.

        Raises:
            ModelError: as `build`.
        """
        unfilled = _Unfilled()
        try:
            with torch.device("meta"), unfilled:
                model = self._made()
        except ModelError:
            model = self.build()
        else:
            room = memory.free()
            if unfilled.lacking and (room is None or memory.weights(model) < room):
                model = self.build()
        return meta_copy(model)

    def _made(self) -> nn.Module:
        try:
            model = self.make()
        except (Exception, SystemExit) as error:
            hint = _NO_ARGUMENTS if isinstance(error, TypeError) and _needs_arguments(self.make) else ""
            raise ModelError(f"{self.name}: {raised(error)}{hint}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(f"{self.name} gave {type(model).__name__}, not an nn.Module")
        return model


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills meta tensors with values they can't have: torch imports its compiler for that.

    Attributes:
        lacking: whether an operation was called that torch does not have on meta.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lacking = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _FILLS:
            try:
                return func(*args, **kwargs)
            except NotImplementedError:
                self.lacking = True
                raise
        tensor, *others = args or [kwargs.pop("tensor", None)]
        numbers = all(isinstance(each, (int, float, NoneType)) for each in (*others, *kwargs.values()))
        if not (numbers and tensor.is_meta and tensor.dtype in DRAWN):
            return func(tensor, *others, **kwargs)
        nothing = torch.empty(0, dtype=tensor.dtype, device="cpu", requires_grad=tensor.requires_grad)
        func(nothing, *others, **kwargs)  # raises where it would have raised
        return tensor


_FILLS = {
    *(nn.init.normal_, torch.Tensor.normal_, torch.Tensor.exponential_, torch.Tensor.log_normal_),
    *(torch.Tensor.cauchy_, torch.Tensor.erfinv_, torch.Tensor.clamp_),
}


def blueprint(model: object) -> Blueprint:
    """The blueprint of a ``model=`` argument: a callable, ``"package.module:name"``, or an ``nn.Module``.

    A module that is given ready-made is never touched: `Blueprint.build` copies it.

    Raises:
        ModelError: the name can't be imported.
    """
    if isinstance(model, str):
        model = imported(model)
    if isinstance(model, nn.Module):
        module = model
        return Blueprint(_name(type(model)), lambda: copy.deepcopy(module))
    if not callable(model):
        raise ModelError(f"model={model!r} is neither callable, nor an nn.Module, nor 'package.module:name'")
    return Blueprint(_name(model), model)


def imported(name: str) -> Any:
    """The object that ``"package.module:name"`` names.

    Raises:
        ModelError: the form is wrong, the module does not import, or it has no such name.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ModelError(f"{name!r} is no model name: write 'package.module:name'")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ModelError(f"{name}: there is no module {error.name!r} {_tried(error.name)}") from error
        raise ModelError(f"{name}: importing {module_name} failed: {raised(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name}: importing {module_name} failed: {raised(error)}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ModelError(f"{name}: {module_name} has no {path!r}") from None
    return found


def _tried(module: str) -> str:
    """Where a module was looked for in vain, and what to do."""
    package = sys.modules.get(module.rpartition(".")[0])
    if package is not None:
        return f"in {_listed(getattr(package, '__path__', ()))}"
    installed = {str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    own = [
        entry
        for entry in dict.fromkeys(sys.path)
        if Path(entry).is_dir() and installed.isdisjoint(map(str, Path(entry).resolve().parents))
    ]
    return (
        f"in {_listed(own) or 'any folder'}, and none is installed: install its package, or add its folder "
        "(pytest's ini key pythonpath; or move ckptcompat.toml beside it)"
    )


def _listed(folders: Iterable[str]) -> str:
    """Folders as a person would write them, the first few."""
    here = Path.cwd()
    paths = [Path(here, folder) for folder in folders]
    shown = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(escape(each, 80) for each in dict.fromkeys(shown[:4])) + more


def _needs_arguments(make: Callable[..., Any]) -> bool:
    try:
        inspect.signature(make).bind()
    except TypeError:
        return True
    except ValueError:  # what is written in C has no signature
        return False
    return False


_NO_ARGUMENTS = "; name a function that takes no arguments and returns the model"


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; ties and hooks are kept.

    Attributes that can't be copied (locks, open files, tensors that were computed) are shared with the model,
    or, where they are tensors, replaced by others on the meta device.
    """
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = _on_meta(tensor)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        return copy.deepcopy(model, memo | _uncopyable(model, memo))


def _uncopyable(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """By identity, what stands for those attributes of modules that refuse to be copied."""
    modules = {id(module): module for module in model.modules()}
    known, instead = modules | memo, dict[int, Any]()
    for module in modules.values():
        for value in vars(module).values():
            try:
                copy.deepcopy(value, ChainMap({}, known))  # type: ignore[arg-type]  # any mapping will do
            except Exception:
                instead[id(value)] = _on_meta(value.detach()) if isinstance(value, torch.Tensor) else value
    return instead


def raised(error: BaseException) -> str:
    """``TypeError: missing 1 required argument (onet.py:12)``: an exception in one line, with its place."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SystemExit):
        text = f"the code called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {text}{_place(error)}"


def _place(error: BaseException) -> str:
    """Where it happened: the innermost line that is none of torch, this package, or Python's importing."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # its text tells file and line
    ours = (Path(each).parent for each in (__file__, torch.__file__, importlib.__file__))
    skipped = (*map(str, ours), "<")
    place, trace = "", error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith(skipped):
            place = f" ({Path(filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.UninitializedParameter):
        make: Any = nn.UninitializedParameter  # torch's stubs lack its arguments
        return make(tensor.requires_grad, device="meta", dtype=tensor.data.dtype)  # type: ignore[no-any-return]
    if isinstance(tensor, nn.UninitializedBuffer):
        make = nn.UninitializedBuffer
        return make(device="meta", dtype=tensor.data.dtype)  # type: ignore[no-any-return]
    if type(tensor.data) is torch.Tensor and tensor.is_meta and tensor.is_contiguous():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # empty_like imports sympy there
    else:
        empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _name(model: object) -> str:
    """``onet.Net``: what a report calls the model; of a partial, what it calls."""
    while isinstance(model, partial):
        model = model.func
    qualified = getattr(model, "__qualname__", None) or type(model).__qualname__
    module = getattr(model, "__module__", None) or ""
    name = qualified.replace("<locals>.", "")
    if name.endswith("<lambda>"):
        code = model.__code__  # type: ignore[attr-defined]
        return f"lambda at {Path(code.co_filename).name}:{code.co_firstlineno}"
    return name if module in ("", "__main__", "builtins") or module not in sys.modules else f"{module}.{name}"
