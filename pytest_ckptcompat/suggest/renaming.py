"""Find renamed keys from shapes, structure and names. Ambiguous cases are left alone."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from .budget import Budget, OutOfTime
from .changes import NO_MODULES
from .evidence import Evidence, distinguish, gathered, in_order, neighbours
from .moves import MOST_OPERATORS, Move, move
from .numbering import renumbered
from .templates import ALL, NONE, Places, Substitution, by_template, indices, template

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pytest_ckptcompat.recipes.operators.rename import Renaming
    from pytest_ckptcompat.recipes.per_tensor import Shape

    from .changes import Modules
    from .templates import Families, Indices, Shapes, Template

MOST_PAIRS = 60_000
_COUNTS = (1, 2)
"""How many numbers of a key may be block numbers, if a name after them gained or lost a number."""
_LEAVES = {"weight", "bias", "running_mean", "running_var"}
"""Leaves that never become one another."""


def renames(
    checkpoint: Shapes, model: Shapes, modules: Modules = NO_MODULES, budget: Budget | None = None
) -> tuple[list[Renaming], dict[str, Shape]]:
    """Rename keys of the checkpoint into keys of the model, as far as can be found within the budget.

    Returns:
        The operators, and the checkpoint after them.
    """
    budget = budget or Budget()
    current = dict(checkpoint)
    operators: list[Renaming] = []
    while len(operators) < MOST_OPERATORS:
        if all(key in model for key in current) or all(key in current for key in model):
            break
        origin = dict(zip(current, checkpoint, strict=True))
        try:
            found = (
                renumbered(current, model, modules, origin, budget)
                or substituted(current, model, budget)
                or substituted(current, model, budget, reshaped=True)
            )
        except OutOfTime:
            break
        if found is None:
            break
        operators += found.operators
        current = {found.names.get(key, key): shape for key, shape in current.items()}
    return operators, current


def substituted(current: Shapes, model: Shapes, budget: Budget, *, reshaped: bool = False) -> Move | None:
    """Find the substitution that explains most, unless another explains as much.

    With `reshaped`, it explains keys whose shape changed together with the name.
    """
    found = _evidence(current, model, reshaped, budget)
    if not found:
        return None
    evidence = sorted(found, key=lambda each: each.rank, reverse=True)
    distinguish(evidence)
    stay = {(template(key), shape) for key, shape in current.items() if model.get(key) == shape}
    places = neighbours(current, model), neighbours(model, current)
    for each in evidence:
        budget.check()
        if (
            each.convinces(*places, reshaped)
            and not each.rivalled(evidence)
            and not _passes_by(each.names, current, stay)
        ):
            moved = move(each.names, each.substitution, current, model, budget)
            if moved is not None:
                return moved
    return None


def _passes_by(names: Mapping[str, str], current: Shapes, stay: Collection[tuple[Template, Shape]]) -> bool:
    """Return whether, for example, ``conv1`` would become ``conv3`` beside an unchanged ``conv2``.

    Either one is gone and the other is new, or each became the next one.
    """
    return any(
        template(key) == template(name) and (template(key), current[key]) in stay
        for key, name in names.items()
    )


def _evidence(current: Shapes, model: Shapes, reshaped: bool, budget: Budget) -> list[Evidence]:
    """Collect evidence for every substitution that turns some key into a key that the model lacks."""
    found: dict[tuple[tuple[str, str], ...], Evidence] = {}
    for most in (ALL, *_COUNTS, NONE):
        budget.check()
        old = by_template((key for key in budget.each(current) if key not in model), most)
        new = by_template((key for key in budget.each(model) if key not in current), most)
        if most in _COUNTS and not _counted_otherwise(old, new):
            continue
        if reshaped:
            pairs = _reshaped(old, new, current, model)
        else:
            pairs = chain(_wrapped(old, new), _alike(old, new, current, model))
        if most != ALL:
            pairs = _other_numbers(pairs)
        places = Places(old)
        votes = Counter(each for one, other in dict.fromkeys(pairs) for each in _substitutions(one, other))
        room = min(max(MOST_PAIRS // max(len(old), 1), 30), 300)
        for substitution, _ in votes.most_common(room):
            budget.check()
            families = {parts: old[parts] for parts in places.of(substitution)}
            each = gathered(substitution, families, new, current, model)
            if each.names:
                found.setdefault(tuple(each.names.items()), each)
        if any(each.wraps and each.exact for each in found.values()):
            break
    return list(found.values())


# -- pairs of names that may be the same --------------------------------------------------------------------


def _wrapped(old: Families, new: Families) -> Iterator[tuple[Template, Template]]:
    """Yield pairs of templates of which one ends with the other."""
    for parts in old:
        yield from ((parts, parts[at:]) for at in range(1, len(parts)) if parts[at:] in new)
    for parts in new:
        yield from ((parts[at:], parts) for at in range(1, len(parts)) if parts[at:] in old)


def _alike(
    old: Families, new: Families, current: Shapes, model: Shapes
) -> Iterator[tuple[Template, Template]]:
    """Templates of which a key has the same numbers, or the first one of as many, and the same shape.

    If there are too many, those that end alike.
    """
    found: dict[tuple[Indices | int, Shape, Template], list[Template]] = {}
    for parts, family in new.items():
        for sign, key in (*family.items(), *_counted(family)):
            for length in range(3):
                found.setdefault((sign, model[key], parts[len(parts) - length :]), []).append(parts)
    room = max(MOST_PAIRS // max(len(old), 1), 8)
    for parts, family in old.items():
        for sign, key in (next(iter(family.items())), *_counted(family)):
            for length in range(3):
                others = found.get((sign, current[key], parts[len(parts) - length :]), [])
                if len(others) <= room:
                    yield from (
                        (parts, other)
                        for other in others
                        if parts[-1] == other[-1] or not {parts[-1], other[-1]} <= _LEAVES
                    )
                    break


def _counted(family: Mapping[Indices, str]) -> list[tuple[Indices | int, str]]:
    """Return how many layers there are and the first one's key, for layers counted from another number."""
    return [(len(family), family[in_order(family)[0]])] if len(family) > 1 else []


def _other_numbers(pairs: Iterable[tuple[Template, Template]]) -> Iterator[tuple[Template, Template]]:
    """Filter pairs with numbers left in to those that templates can't tell: ``layer1``, ``conv``, ``out.0``.

    A layer's number, between dots, may appear or vanish, but not change: see `numbering`.
    """
    for old, new in pairs:
        one, other = _layer_numbers(old), _layer_numbers(new)
        if _numbers(old) != _numbers(new) and (one == other or not one or not other):
            yield old, new


def _counted_otherwise(old: Families, new: Families) -> bool:
    """Return whether names still have layer numbers, and not equally many on both sides."""
    olds, news = ({len(_layer_numbers(parts)) for parts in families} for families in (old, new))
    return olds != news and max(olds | news, default=0) > 0


@lru_cache(1 << 16)
def _numbers(parts: Template) -> Indices:
    return indices(".".join(parts))


@lru_cache(1 << 16)
def _layer_numbers(parts: Template) -> Indices:
    return tuple(part for part in parts if part.isdecimal())


def _reshaped(
    old: Families, new: Families, current: Shapes, model: Shapes
) -> Iterator[tuple[Template, Template]]:
    """Yield pairs of templates with the same numbers and last part, but another shape.

    A tensor that fits somewhere unchanged is not a candidate.
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
    """Yield substitutions that turn one template into the other: at this place, and anywhere."""
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
