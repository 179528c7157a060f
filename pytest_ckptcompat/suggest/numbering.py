"""Find layers that got other numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from .moves import Move, move

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.recipes.per_tensor import Shape

    from .budget import Budget
    from .changes import Modules
    from .templates import Shapes


class _Parent(NamedTuple):
    """A group that is numbered: children of a module, modules of one name, or what each has under one name.

    Attributes:
        before: the start of the keys, up to the number.
        branch: the part after the number; ``""`` for whole children.
    """

    before: str
    branch: str

    def key(self, number: int, rest: str) -> str:
        return f"{self.before}{number}{self.branch}{rest}"


Children = dict[int, dict[str, "Shape"]]
"""Number -> the rest of the key -> its shape."""


def renumbered(
    current: Shapes, model: Shapes, modules: Modules, origin: Mapping[str, str], budget: Budget
) -> Move | None:
    """Renumber the children of one module, if each has its counterpart under another number, in order.

    This happens when modules without parameters are added or removed (``net.0, net.2, net.4`` become ``net.0,
    net.1, net.2``), or when a part of each child moves to the next child (``layers.0.downsample`` becomes
    ``layers.1.downsample``).

    `origin` has the checkpoint's key for each name found so far.
    """
    for branches in (False, True):
        parents, others = (_children(shapes, branches, budget) for shapes in (current, model))
        for parent, old in parents.items():
            new = others.get(parent, {})
            if (
                len(old) == len(new)
                and old.keys() != new.keys()
                and (len(old) > 1 or parent.before[-1:] in ("", "."))  # a lone ``norm1`` is a name
                and _ordered(parent, old, new, modules, origin)
            ):
                places = zip(sorted(old), sorted(new), strict=True)
                names = {
                    parent.key(one, rest): parent.key(other, rest)
                    for one, other in places
                    if one != other
                    for rest in old[one]
                }
                return move(names, None, current, model, budget)
    return None


def _ordered(
    parent: _Parent, old: Children, new: Children, modules: Modules, origin: Mapping[str, str]
) -> bool:
    """Return whether children correspond by place in the row, and not by number.

    In a Sequential a number is a place. Elsewhere it may be a name, such as the stride of a feature map or
    the number of a task. Then shapes must tell which is which, or a child that already fits must not be
    moved.
    """
    places = dict(zip(sorted(old), sorted(new), strict=True))
    if any(old[one] != new[other] for one, other in places.items()):
        return False
    if any(number in new and old[number] != new[number] for number in old):
        return True  # nothing but the order explains the shapes
    module = modules.get(parent.before.removesuffix("."))
    whole = not parent.branch
    if (
        whole
        and isinstance(module, nn.Sequential)
        and list(module._modules) == [str(i) for i in range(len(module))]
    ):
        return True
    shapes = list(new.values())
    if len({repr(each) for each in shapes}) == len(shapes):
        return True
    stay = any(
        old[one] == new.get(one)
        and origin[parent.key(one, rest)].endswith(f"{parent.before[-1:]}{one}{parent.branch}{rest}")
        for one, other in places.items()
        if one != other
        for rest in old[one]
    )
    return whole and not stay and not isinstance(module, nn.ModuleDict)


def _children(shapes: Shapes, branches: bool, budget: Budget) -> dict[_Parent, Children]:
    parents: dict[_Parent, Children] = {}
    for key, shape in budget.each(shapes.items()):
        for number in _NUMBER.finditer(key):
            before, rest, branch = key[: number.start()], key[number.end() :], ""
            if branches:
                part, dot, rest = rest[1:].partition(".")
                branch, rest = f".{part}", dot + rest
                if branch == ".":
                    continue
            children = parents.setdefault(_Parent(before, branch), {})
            children.setdefault(int(number[0]), {})[rest] = shape
    return parents


_NUMBER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![^.])")
"""The number that a part of a key is, or ends with."""
