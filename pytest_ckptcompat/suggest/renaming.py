"""Which keys were renamed: found from shapes, structure and names; an ambiguous tie is left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from .likeness import likeness, words_of
from .moves import MOST_STEPS, Move, move
from .numbering import renumbered
from .templates import Indices, Shape, Shapes, Substitution, Template, by_template

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .steps import Step

MOST_PAIRS = 60_000
CLEAR = 0.15
"""How much likelier by its name a substitution must be than another that explains as much."""

Families = dict[Template, dict[Indices, str]]


def renames(checkpoint: Shapes, model: Shapes) -> tuple[list[Step], dict[str, Shape]]:
    """Steps that rename keys of the checkpoint into keys of the model, and the checkpoint after them."""
    current = dict(checkpoint)
    steps: list[Step] = []
    while len(steps) < MOST_STEPS:
        found = _next_move(current, model)
        if found is None:
            break
        steps += found.steps
        current = {found.names.get(key, key): shape for key, shape in current.items()}
    return steps, current


def _next_move(current: Shapes, model: Shapes) -> Move | None:
    if not any(key not in model for key in current) or not any(key not in current for key in model):
        return None
    return (
        renumbered(current, model)
        or substituted(current, model, numbers_out=True)
        or substituted(current, model, numbers_out=False)
        or substituted(current, model, numbers_out=True, reshaped=True)
    )


# -- parts of names replaced by others ----------------------------------------------------------------------


@dataclass(slots=True)
class _Account:
    """What a substitution would do: keys that find their place, with and without their shape, and others."""

    substitution: Substitution
    exact: int = 0
    near: int = 0
    lost: int = 0
    moves: dict[Template, Template] = field(default_factory=dict)
    like: float = 0.0
    distinct: float = 0.0

    @property
    def worth(self) -> int:
        return 2 * self.exact + self.near - (0 if self.unwraps else self.lost)

    @property
    def unwraps(self) -> bool:
        """Whether it takes off what only ever wraps a model; what it does not match then may have gone."""
        taken = self.substitution.old
        return self.substitution.new == () and len(taken) > 0 and _WRAPPERS.issuperset(taken)

    @property
    def rank(self) -> tuple[bool, int, float, bool, int]:
        parts = len(self.substitution.old) + len(self.substitution.new)
        unwraps = self.unwraps and self.exact + self.near > 0
        return unwraps, self.worth, self.like, self.substitution.prefix is not None, -parts


def substituted(current: Shapes, model: Shapes, *, numbers_out: bool, reshaped: bool = False) -> Move | None:
    """The replacement of parts of names that explains most, if it is the only one that explains as much.

    Args:
        current: the checkpoint's keys.
        model: the model's keys.
        numbers_out: take layers that differ in their numbers as one.
        reshaped: look for keys whose shape changed along with the name.
    """
    old = by_template(current, (key for key in current if key not in model), numbers_out)
    new = by_template(model, (key for key in model if key not in current), numbers_out)
    if reshaped:
        pairs = _reshaped(old, new, current, model)
    else:
        pairs = chain(_wrapped(old, new), _alike(old, new, current, model))
    votes = Counter(each for one, other in dict.fromkeys(pairs) for each in _substitutions(one, other))
    room = min(max(MOST_PAIRS // max(len(old), 1), 30), 300)
    accounts = [_account(each, old, new, current, model) for each, _ in votes.most_common(room)]
    accounts = sorted((each for each in accounts if each.moves), key=lambda each: each.rank, reverse=True)
    _set_apart(accounts)
    for account in accounts:
        convincing = _convincing(account, reshaped, current, model, old, new) and not _rivalled(
            account, accounts
        )
        if convincing and (found := move(_names(account, old, new), account.substitution, current, model)):
            return found
    return None


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
                yield from ((parts, other) for other in others)
                break


def _reshaped(
    old: Families, new: Families, current: Shapes, model: Shapes
) -> Iterator[tuple[Template, Template]]:
    if len(old) * len(new) > 4096:
        return
    for parts, family in old.items():
        for other, others in new.items():
            if family.keys() == others.keys() and parts[-1] == other[-1]:
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


def _account(
    substitution: Substitution, old: Families, new: Families, current: Shapes, model: Shapes
) -> _Account:
    account = _Account(substitution, like=_likeness(substitution))
    for parts, family in old.items():
        changed = substitution(parts)
        if changed is None or changed == parts:
            continue
        targets = new.get(changed, {})
        for numbers, key in family.items():
            target = targets.get(numbers)
            if target is None:
                account.lost += 1
            elif current[key] == model[target]:
                account.exact += 1
            else:
                account.near += 1
        if targets:
            account.moves[parts] = changed
    return account


def _set_apart(accounts: Iterable[_Account]) -> None:
    """Give each its likeness without the words that do not tell it from its alternatives."""
    news: dict[tuple[object, ...], list[str]] = {}
    olds: dict[tuple[object, ...], list[str]] = {}
    for account in accounts:
        prefix, old, new = account.substitution.prefix, account.substitution.old, account.substitution.new
        news.setdefault((prefix, old), []).append(".".join(new))
        olds.setdefault((prefix, new), []).append(".".join(old))
    for account in accounts:
        prefix, old, new = account.substitution.prefix, account.substitution.old, account.substitution.new
        common = _common(news[prefix, old]) | _common(olds[prefix, new])
        account.distinct = likeness(".".join(old), ".".join(new), common) if old and new else account.like


def _common(names: Sequence[str]) -> frozenset[str]:
    """The words that several names share."""
    if len(names) < 2:
        return frozenset()
    return frozenset.intersection(*(frozenset(words_of(name)) for name in names))


_WRAPPERS = {
    "module",
    "_orig_mod",
    "model",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "net",
    "network",
}


def _likeness(substitution: Substitution) -> float:
    if substitution.old and substitution.new:
        return likeness(".".join(substitution.old), ".".join(substitution.new))
    return 0.9 if _WRAPPERS.issuperset(substitution.old + substitution.new) else 0.5


def _names(account: _Account, old: Families, new: Families) -> dict[str, str]:
    return {
        key: new[changed][numbers]
        for parts, changed in account.moves.items()
        for numbers, key in old[parts].items()
        if numbers in new[changed]
    }


def _convincing(
    account: _Account, reshaped: bool, current: Shapes, model: Shapes, old: Families, new: Families
) -> bool:
    """Whether there is more to it than a shape that happens to be the same."""
    if not account.exact and not (reshaped and account.near):
        return False
    if account.worth <= 0:
        return False
    if account.exact >= 3 or account.like >= 0.3:
        return True
    return account.exact == 2 and all(
        _in_place(old[parts], new[changed], current, model) for parts, changed in account.moves.items()
    )


def _in_place(
    family: Mapping[Indices, str], targets: Mapping[Indices, str], current: Shapes, model: Shapes
) -> bool:
    """Whether a key stands beside the same key in the checkpoint as in the model."""
    olds, news = list(current), list(model)
    numbers = next(iter(family))
    if numbers not in targets:
        return False
    one, other = olds.index(family[numbers]), news.index(targets[numbers])
    before = _neighbour(reversed(olds[:one]), model) == _neighbour(reversed(news[:other]), current)
    after = _neighbour(olds[one + 1 :], model) == _neighbour(news[other + 1 :], current)
    return before and after


def _neighbour(keys: Iterable[str], known: Shapes) -> str:
    return next((key for key in keys if key in known), "")


def _rivalled(account: _Account, accounts: Iterable[_Account]) -> bool:
    """Whether another substitution explains about as much, otherwise, and is about as likely by its name."""
    return any(
        other.worth >= 0.9 * account.worth
        and other.distinct > account.distinct - CLEAR
        and _contradict(account.moves, other.moves)
        for other in accounts
        if other is not account
    )


def _contradict(moves: Mapping[Template, Template], others: Mapping[Template, Template]) -> bool:
    if any(parts in others and others[parts] != changed for parts, changed in moves.items()):
        return True
    sources = {changed: parts for parts, changed in others.items()}
    return any(sources.get(changed, parts) != parts for parts, changed in moves.items())
