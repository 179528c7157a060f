"""The model under test: its name, and how to build it, for real or on the meta device."""

from __future__ import annotations

import copy
import difflib
import inspect
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.errors import ModelError, raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.models.meta_copy import meta_copy, opaque
from pytest_ckptcompat.models.sharded import (
    is_flattened,
    is_sharded,
    more_ranks,
    simulated_ranks,
    stand_in,
    unwrapped,
    wants_ranks,
)
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.tensors.seeds import DRAWN, seeded
from pytest_ckptcompat.tensors.surroundings import place_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Blueprint:
    """A ``model=`` argument: a name to print, and a function that builds the model any number of times."""

    name: str
    make: Callable[[], Any]

    def build(self, seed: int = 0) -> nn.Module:
        """Build the model for real, with seeded random initialisation.

        Raises:
            ModelError: the callable raised, exited, or returned something that is not an ``nn.Module``.
        """
        with seeded(seed):
            return self._made()

    def schema(self) -> nn.Module:
        """Build the model on the meta device, with every shape and dtype but without memory.

        This fails if the constructor uses values (``.item()``, ``.tolist()``). It may also miss parameters if
        the constructor catches the error of an operation that meta lacks (``orthogonal``). Such a model is
        built for real, if memory allows, and copied to the meta device.

        A model that shards itself is replaced by a stand-in with whole tensors. Missing ranks are simulated.

        Raises:
            ModelError: as for `build`.
        """
        try:
            return self._schema()
        except ModelError as error:
            if error.__cause__ is None or not wants_ranks(error.__cause__):
                raise
            return self._schema_of_ranks()

    def _schema(self) -> nn.Module:
        unfilled = _Unfilled()
        try:
            with torch.device("meta"), unfilled:
                model = self._made()
        except ModelError:
            model = self.build()
        else:
            room = memory.free()
            lacking = unfilled.lacking or bool(opaque(model))
            if lacking and (room is None or weights(model) < room):
                model = self.build()
        model = unwrapped(model)
        if is_flattened(model):
            raise ModelError(
                f"{self.name} gives a FullyShardedDataParallel, whose parameters can't be determined without "
                "its ranks: give the model without it, which has the keys of its checkpoints"
            )
        try:
            return stand_in(model) if is_sharded(model) else meta_copy(model)
        except Exception as error:
            raise ModelError(f"{self.name} can't be copied to the meta device: {raised(error)}") from error

    def _schema_of_ranks(self) -> nn.Module:
        """Return a stand-in in any case, because nothing can be loaded into the model without its ranks."""
        try:
            with simulated_ranks():
                return stand_in(self._schema())
        except ModelError as error:
            ranks = 0 if error.__cause__ is None else more_ranks(error.__cause__)
            if not ranks:
                raise
        with simulated_ranks(ranks):
            return stand_in(self._schema())

    def _made(self) -> nn.Module:
        try:
            with place_kept():
                model = self.make()
        except (Exception, SystemExit) as error:
            hint = _NO_ARGUMENTS if isinstance(error, TypeError) and _needs_arguments(self.make) else ""
            raise ModelError(f"{self.name}: {raised(error)}{hint}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(f"{self.name} gave {type(model).__name__}, not an nn.Module")
        return model


class _Unfilled(TorchFunctionMode):
    """A mode that skips operations which only fill meta tensors. torch imports its compiler for them.

    Attributes:
        lacking: whether an operation was called that is missing or wrong on the meta device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lacking = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.lacking = self.lacking or func in _UNTRUE
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
        func(nothing, *others, **kwargs)  # raises the same errors
        return tensor


_FILLS = {
    *(nn.init.normal_, torch.Tensor.normal_, torch.Tensor.exponential_, torch.Tensor.log_normal_),
    *(torch.Tensor.cauchy_, torch.Tensor.erfinv_, torch.Tensor.clamp_),
}


_UNTRUE = {
    *(torch.quantize_per_tensor, torch.quantize_per_channel, torch.quantize_per_tensor_dynamic),
}
"""Operations with wrong results on meta: tensors that are not quantized."""


def blueprint(model: object, arguments: Mapping[str, Any] | None = None) -> Blueprint:
    """Return the blueprint of a callable, ``"package.module:name"``, or an ``nn.Module``.

    An ``nn.Module`` is never changed: `Blueprint.build` copies it.

    Args:
        model: the ``model=`` argument.
        arguments: keyword arguments for the callable.

    Raises:
        ModelError: the name can't be imported, or the callable does not take the arguments.
    """
    if isinstance(model, str):
        model = imported(model)
    if isinstance(model, nn.Module):
        if arguments:
            raise ModelError("model_args are for a callable, and model is an nn.Module that is built already")
        module = model
        if is_sharded(module):
            return Blueprint(named(type(model)), lambda: stand_in(module))
        return Blueprint(named(type(model)), lambda: copy.deepcopy(module))
    if not callable(model):
        raise ModelError(f"model={model!r} is neither callable, nor an nn.Module, nor 'package.module:name'")
    if not arguments:
        return Blueprint(named(model), model)
    if refused := _refused(model, arguments):
        raise ModelError(f"{named(model)} does not take {refused}")
    return Blueprint(named(model), partial(model, **arguments))


def _refused(make: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return which keyword arguments a callable does not take, with a hint, or ``""``."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # code in C may have no signature
        return ""
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return ""
    known = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = [name for name in arguments if name not in known]
    if not unknown:
        return ""
    near = difflib.get_close_matches(unknown[0], known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'no arguments'}"
    return f"{', '.join(repr(escape(str(name), 60)) for name in unknown)} of model_args: {hint}"


def _needs_arguments(make: Callable[..., Any]) -> bool:
    try:
        inspect.signature(make).bind()
    except TypeError:
        return True
    except ValueError:  # code in C may have no signature
        return False
    return False


_NO_ARGUMENTS = "; name a function that takes no arguments and returns the model"


def named(model: object) -> str:
    """Return the name of a model for reports: ``onet.Net``. A partial is named after its function."""
    while isinstance(model, partial):
        model = model.func
    qualified = getattr(model, "__qualname__", None) or type(model).__qualname__
    module = getattr(model, "__module__", None) or ""
    name = qualified.replace("<locals>.", "")
    if name.endswith("<lambda>"):
        code = model.__code__  # type: ignore[attr-defined]
        return f"lambda at {Path(code.co_filename).name}:{code.co_firstlineno}"
    return name if module in ("", "__main__", "builtins") or module not in sys.modules else f"{module}.{name}"
