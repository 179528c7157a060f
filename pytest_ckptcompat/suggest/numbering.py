"""Layers that got other numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from .moves import Move, move

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .layers import Modules
    from .templates import Shape, Shapes


def renumbered(current: Shapes, model: Shapes, modules: Modules, origin: Mapping[str, str]) -> Move | None:
    """The numbered children of one module, if each has its counterpart under another number, in order.

    This is what happens when modules without parameters come or go: ``net.0, net.2, net.4`` became ``net.0,
    net.1, net.2``.

    Args:
        current: the checkpoint's keys, by the names found so far.
        model: the model's.
        modules: its modules, by their paths.
        origin: each of the names found so far -> the key that the checkpoint has.
    """
    parents, others = _children(current), _children(model)
    for parent, old in parents.items():
        new = others.get(parent, {})
        if len(old) != len(new) or old.keys() == new.keys():
            continue
        places = dict(zip(sorted(old), sorted(new), strict=True))
        moved = {one: other for one, other in places.items() if one != other}
        fits = all(old[one] == new[other] for one, other in places.items())
        stay = any(
            old[one] == new.get(one) and origin[f"{parent}{one}{rest}"].endswith(f".{one}{rest}")
            for one in moved
            for rest in old[one]
        )
        if fits and _ordered(modules.get(parent.removesuffix(".")), new, stay):
            names = {
                f"{parent}{one}{rest}": f"{parent}{other}{rest}"
                for one, other in moved.items()
                for rest in old[one]
            }
            return move(names, None, current, model)
    return None


def _ordered(parent: nn.Module | None, children: Mapping[int, Mapping[str, Shape]], stay: bool) -> bool:
    """Whether a child is what was in the same place of the row, and not what had its number.

    In a Sequential a number is a place. Elsewhere it may be a name, such as the stride of a feature map or
    the number of a task: then shapes must say which is which, or nothing that fits where it is may be moved.

    Args:
        parent: their module.
        children: by their numbers, what the model has under each.
        stay: whether some that would be moved fit where they are.
    """
    if isinstance(parent, nn.Sequential) and list(parent._modules) == [str(i) for i in range(len(parent))]:
        return True
    shapes = list(children.values())
    if all(shapes.count(each) == 1 for each in shapes):
        return True
    return not stay and not isinstance(parent, nn.ModuleDict)


def _children(shapes: Shapes) -> dict[str, dict[int, dict[str, Shape]]]:
    """By the beginning of keys before a number, and by the number: what follows, with its shapes."""
    parents: dict[str, dict[int, dict[str, Shape]]] = {}
    for key, shape in shapes.items():
        for number in _NUMBER.finditer(key):
            children = parents.setdefault(key[: number.start()], {})
            children.setdefault(int(number[0]), {})[key[number.end() :]] = shape
    return parents


_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,8})(?![^.])")
