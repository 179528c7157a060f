"""Layers that got other numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .moves import Move, move

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .templates import Shape, Shapes


def renumbered(current: Shapes, model: Shapes) -> Move | None:
    """The numbered children of one module, if each has its counterpart under another number, in order.

    This is what happens when modules without parameters come or go: ``net.0, net.2, net.4`` became ``net.0,
    net.1, net.2``.
    """
    for parent in _parents(key for key in current if key not in model):
        old, new = _children(parent, current), _children(parent, model)
        pairs = list(zip(old, new, strict=False))
        if len(old) != len(new) or all(one == other for one, other in pairs):
            continue
        if all(old[one] == new[other] for one, other in pairs):
            names = {
                f"{parent}{one}{rest}": f"{parent}{other}{rest}"
                for one, other in pairs
                if one != other
                for rest in old[one]
            }
            if any(current[key] != model.get(key) for key in names):
                return move(names, None, current, model)
    return None


def _parents(keys: Iterable[str]) -> Iterator[str]:
    """Every beginning of a key before a number: ``net.`` of ``net.2.weight``."""
    seen: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")
        for at, part in enumerate(parts):
            if part.isdecimal():
                seen["".join(f"{before}." for before in parts[:at])] = None
    return iter(seen)


def _children(parent: str, shapes: Shapes) -> dict[int, dict[str, Shape]]:
    """By number: what lies below, with its shapes."""
    children: dict[int, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        if key.startswith(parent):
            number, dot, rest = key[len(parent) :].partition(".")
            if number.isdecimal():
                children.setdefault(int(number), {})[dot + rest] = shape
    return dict(sorted(children.items()))
