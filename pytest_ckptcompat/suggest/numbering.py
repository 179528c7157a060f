"""Layers that got other numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .moves import Move, move

if TYPE_CHECKING:
    from .templates import Shape, Shapes


def renumbered(current: Shapes, model: Shapes) -> Move | None:
    """The numbered children of one module, if each has its counterpart under another number, in order.

    This is what happens when modules without parameters come or go: ``net.0, net.2, net.4`` became ``net.0,
    net.1, net.2``.
    """
    parents, others = _children(current), _children(model)
    for parent, old in parents.items():
        new = others.get(parent, {})
        if len(old) != len(new) or old.keys() == new.keys():
            continue
        pairs = list(zip(sorted(old), sorted(new), strict=True))
        if all(old[one] == new[other] for one, other in pairs):
            names = {
                f"{parent}{one}{rest}": f"{parent}{other}{rest}"
                for one, other in pairs
                if one != other
                for rest in old[one]
            }
            return move(names, None, current, model)
    return None


def _children(shapes: Shapes) -> dict[str, dict[int, dict[str, Shape]]]:
    """By the beginning of keys before a number, and by the number: what follows, with its shapes."""
    parents: dict[str, dict[int, dict[str, Shape]]] = {}
    for key, shape in shapes.items():
        for number in _NUMBER.finditer(key):
            children = parents.setdefault(key[: number.start()], {})
            children.setdefault(int(number[0]), {})[key[number.end() :]] = shape
    return parents


_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,8})(?![^.])")
