"""Which keys were renamed: found from shapes, structure and names; an ambiguous tie is left alone."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from .evidence import Evidence, Families, gathered, set_apart
from .layers import NO_MODULES
from .moves import MOST_STEPS, Move, move
from .templates import Indices, Shape, Shapes, Substitution, Template, by_template, indices, template

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from .layers import Modules
    from .steps import Step
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

MOST_PAIRS = 60_000

_LEAVES = {"weight", "bias", "running_mean", "running_var"}
"""None of them ever became another."""


def renames(
    checkpoint: Shapes, model: Shapes, modules: Modules = NO_MODULES
) -> tuple[list[Step], dict[str, Shape]]:
    """Steps that rename keys of the checkpoint into keys of the model, and the checkpoint after them.

    The model's `modules`, by their paths, tell whether numbers of layers are their places or their names.
    """
    current = dict(checkpoint)
    steps: list[Step] = []
    while len(steps) < MOST_STEPS:
        origin = dict(zip(current, checkpoint, strict=True))
        found = _next_move(current, model, modules, origin)
        if found is None:
            break
        steps += found.steps
        current = {found.names.get(key, key): shape for key, shape in current.items()}
    return steps, current


def _next_move(current: Shapes, model: Shapes, modules: Modules, origin: Mapping[str, str]) -> Move | None:
    if all(key in model for key in current) or all(key in current for key in model):
        return None
    return (
        renumbered(current, model, modules, origin)
        or substituted(current, model)
        or substituted(current, model, reshaped=True)
    )


def substituted(current: Shapes, model: Shapes, *, reshaped: bool = False) -> Move | None:
    """The replacement of parts of names that explains most, unless another explains as much as well.

    Args:
        current: the checkpoint's keys.
        model: the model's keys.
        reshaped: look for keys whose shape changed along with the name.
    """
    evidence = sorted(_evidence(current, model, reshaped), key=lambda each: each.rank, reverse=True)
    set_apart(evidence)
    stay = {(template(key), shape) for key, shape in current.items() if model.get(key) == shape}
    for each in evidence:
        if (
            each.convinces(current, model, reshaped)
            and not each.rivalled(evidence)
            and not _passes_by(each.names, current, stay)
        ):
            found = move(each.names, each.substitution, current, model)
            if found is not None:
                return found
    return None


def _passes_by(names: Mapping[str, str], current: Shapes, stay: Collection[tuple[Template, Shape]]) -> bool:
    """Whether a ``conv1`` would become ``conv3`` beside a ``conv2`` that stays.

    One may be gone and the other new, or each may have become the next.
    """
    return any(
        template(key) == template(name) and (template(key), current[key]) in stay
        for key, name in names.items()
    )


def _evidence(current: Shapes, model: Shapes, reshaped: bool) -> list[Evidence]:
    """For every substitution that turns some key into a key that the model lacks: what else it would do."""
    found: dict[tuple[tuple[str, str], ...], Evidence] = {}
    for numbers_out in (True, False):
        old = by_template((key for key in current if key not in model), numbers_out)
        new = by_template((key for key in model if key not in current), numbers_out)
        if reshaped:
            pairs = _reshaped(old, new, current, model)
        else:
            pairs = chain(_wrapped(old, new), _alike(old, new, current, model))
        if not numbers_out:
            pairs = _other_numbers(pairs)
        votes = Counter(each for one, other in dict.fromkeys(pairs) for each in _substitutions(one, other))
        room = min(max(MOST_PAIRS // max(len(old), 1), 30), 300)
        for substitution, _ in votes.most_common(room):
            each = gathered(substitution, old, new, current, model)
            if each.names:
                found.setdefault(tuple(each.names.items()), each)
        if any(each.wraps and each.exact for each in found.values()):
            break
    return list(found.values())


def _wrapped(old: Families, new: Families) -> Iterator[tuple[Template, Template]]:
    """Templates of which one is the end of the other."""
    for parts in old:
        yield from ((parts, parts[at:]) for at in range(1, len(parts)) if parts[at:] in new)
    for parts in new:
        yield from ((parts[at:], parts) for at in range(1, len(parts)) if parts[at:] in old)


def _alike(
    old: Families, new: Families, current: Shapes, model: Shapes
) -> Iterator[tuple[Template, Template]]:
    """Templates of which a key has the same numbers and the same shape; if too many, those that end alike."""
    found: dict[tuple[Indices, Shape, Template], list[Template]] = {}
    for parts, family in new.items():
        for numbers, key in family.items():
            for length in range(3):
                ending = parts[len(parts) - length :]
                found.setdefault((numbers, model[key], ending), []).append(parts)
    room = max(MOST_PAIRS // max(len(old), 1), 8)
    for parts, family in old.items():
        numbers, key = next(iter(family.items()))
        for length in range(3):
            others = found.get((numbers, current[key], parts[len(parts) - length :]), [])
            if len(others) <= room:
                yield from (
                    (parts, other)
                    for other in others
                    if parts[-1] == other[-1] or not {parts[-1], other[-1]} <= _LEAVES
                )
                break


def _other_numbers(pairs: Iterable[tuple[Template, Template]]) -> Iterator[tuple[Template, Template]]:
    """Of names with their numbers left in, those that layers seen as one can't tell: ``layer1`` was ``conv``.

    The number of a layer, between dots, may come or go, but does not become another: see `numbering`.
    """
    numbers: dict[Template, Indices] = {}
    layers: dict[Template, Indices] = {}
    for pair in pairs:
        for parts in pair:
            if parts not in numbers:
                numbers[parts] = indices(".".join(parts))
                layers[parts] = tuple(part for part in parts if part.isdecimal())
        old, new = pair
        if numbers[old] != numbers[new] and (
            layers[old] == layers[new] or not layers[old] or not layers[new]
        ):
            yield pair


def _reshaped(
    old: Families, new: Families, current: Shapes, model: Shapes
) -> Iterator[tuple[Template, Template]]:
    """Templates with the same numbers and the same last part, where the shape has changed.

    What fits somewhere as it is has not changed its shape.
    """
    if len(old) * len(new) > 4096:
        return
    leaves = {(parts[-1], current[key]) for parts, family in old.items() for key in family.values()}
    places = {(parts[-1], model[key]) for parts, family in new.items() for key in family.values()}
    for parts, family in old.items():
        if any((parts[-1], current[key]) in places for key in family.values()):
            continue
        for other, others in new.items():
            fits = any((other[-1], model[key]) in leaves for key in others.values())
            if not fits and family.keys() == others.keys() and parts[-1] == other[-1]:
                numbers = next(iter(family))
                if _reshapable(current[family[numbers]], model[others[numbers]]):
                    yield parts, other


def _reshapable(old: Shape, new: Shape) -> bool:
    if old is None or new is None or len(old) != len(new):
        return False
    return sum(a != b for a, b in zip(old, new, strict=True)) <= 1 or old == new[::-1]


def _substitutions(old: Template, new: Template) -> Iterator[Substitution]:
    """What turns one template into the other: at this place, and anywhere."""
    shortest = min(len(old), len(new))
    start = next((at for at in range(shortest) if old[at] != new[at]), shortest)
    rest = shortest - start
    end = next((at for at in range(rest) if old[-1 - at] != new[-1 - at]), rest)
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    if ".".join(before).count("#") != ".".join(after).count("#"):
        return
    yield Substitution(old[:start], before, after)
    if before and start:
        yield Substitution(None, before, after)
