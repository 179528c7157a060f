"""Placeholders for objects of a checkpoint that can't be read without running code that the file names."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_ckptcompat.core.escape import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


class UnreadError(AttributeError):
    """Raised if code uses an object that was not read."""


class Unread:
    """A placeholder for an object that was not read. Its class has the name of the object's class.

    Any use raises `UnreadError`. A model's code should never see one: see `spared`.

    Attributes:
        why: what the object is and why it was not read, safe to print.
    """

    why: str

    @staticmethod
    def of(kind: str, why: str) -> Unread:
        """Make the placeholder for an object."""
        module, _, name = kind.rpartition(".")
        standing: Unread = type(name or "object", (Unread,), {"__module__": module or "builtins"})()
        standing.why = why
        return standing

    def __getattr__(self, name: str) -> NoReturn:
        raise UnreadError(f"{name!r} of an object that was not read: {self.__dict__.get('why', '')}")

    def __repr__(self) -> str:
        return f"<not read: {self.why}>"


def _looked_at(self: Unread, *_: object) -> NoReturn:
    raise UnreadError(f"an object that was not read was used: {self.why}")


for _name in (
    "getitem", "setitem", "len", "iter", "contains", "call", "int", "float", "index", "add", "radd", "sub",
    "mul", "or", "and", "lt", "gt",
):  # fmt: skip
    setattr(Unread, f"__{_name}__", _looked_at)


def unread(state_dict: Mapping[str, Any]) -> str:
    """Return which object in the state dict was not read, and why; ``""`` if there is none.

    Extra state is ignored, because `spared` can keep it from the model's code.
    """
    for key, value in state_dict.items():
        if isinstance(value, Unread) and key.rpartition(".")[2] != "_extra_state":
            return f"{escape(key)} was not read: {value.why}"
    return ""


@contextmanager
def spared(model: nn.Module, state_dict: Mapping[str, Any]) -> Iterator[None]:
    """Don't call the setters of extra state that was not read, inside the block."""
    unread = {key for key, value in state_dict.items() if isinstance(value, Unread)}
    changed: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False) if unread else ():
        if f"{name}._extra_state".removeprefix(".") in unread and "set_extra_state" not in vars(module):
            module.set_extra_state = lambda state: None
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.set_extra_state
