"""Find the module and the line of the user's code from which an exception or a bad value comes."""

from __future__ import annotations

import linecache
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.tensors.nested import tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")


@dataclass(frozen=True)
class Place:
    """A point of a model's forward pass.

    Attributes:
        module: the path of the running module (``layers.3.attn``), or ``""`` for the model itself.
        kind: the name of its class, or ``""`` if no module was running.
        line: ``onet.py:31: x = self.conv1(x)``, the innermost line outside torch and this package, or ``""``.
    """

    module: str = ""
    kind: str = ""
    line: str = ""

    def __str__(self) -> str:
        module = f"in {self.module} ({self.kind})" if self.module else f"in {self.kind}" if self.kind else ""
        return ", ".join(part for part in (module, self.line) if part)


def blame(error: BaseException, model: nn.Module) -> Place:
    """Return where in `model` an exception was raised, according to its traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    place = Place()
    for frame, lineno in walk_tb(error.__traceback__):
        owner = _first_argument(frame)
        if isinstance(owner, nn.Module):
            # an unregistered module (in a plain list) gets the path of the module that called it
            place = Place(names.get(id(owner), place.module), type(owner).__name__, place.line)
        if not frame.f_code.co_filename.startswith(_LIBRARY):
            place = Place(place.module, place.kind, _line(frame, lineno))
    return place


def failure(error: BaseException, model: nn.Module, note: str = "") -> Finding:
    """Return the ``forward-error`` finding for an exception, with its message, module and line."""
    place = blame(error, model)
    text = "; ".join(part for part in (cause(error), note, str(place)) if part)
    return finding("forward-error", place.module, message=text)


def cause(error: BaseException, limit: int = 400) -> str:
    """Return type and message of an exception on one line, safe to print."""
    if isinstance(error, SystemExit):
        return f"the model called sys.exit({escape(repr(error.code), limit=80)})"
    text = str(error).partition("\nException raised from ")[0]  # torch adds its C++ stack below
    text = " ".join(text.split())
    return f"{type(error).__name__}: {escape(text, limit=limit)}" if text else type(error).__name__


def first_module(
    model: nn.Module, run: Callable[[], Any], suspicious: Callable[[torch.Tensor], bool]
) -> Place:
    """Return the first module, in the order of execution, that turns good input into a suspicious tensor."""
    found: list[Place] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not found and _any(output, suspicious) and not _any((args, kwargs), suspicious):
                found.append(Place(name, type(module).__name__))

        return look

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                stack.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)
        run()
    return found[0] if found else Place()


def _any(value: Any, suspicious: Callable[[torch.Tensor], bool]) -> bool:
    return any(suspicious(tensor) for _, tensor in tensors(value))


def _first_argument(frame: FrameType) -> Any:
    """Return the first argument of a frame's function, which is ``self`` in a method."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _line(frame: FrameType, lineno: int) -> str:
    filename = frame.f_code.co_filename
    source = linecache.getline(filename, lineno, frame.f_globals).strip()
    return escape(f"{Path(filename).name}:{lineno}" + (f": {source}" if source else ""), limit=200)
