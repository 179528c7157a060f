"""Find lists of tensors, such as experts, that became one tensor, or the reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.recipes.operators import stack_tensors, unbind

from .patterns import matches_only, starred

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_ckptcompat.recipes.base import Operator

    from .templates import Shapes

MOST_OPERATORS = 16


class _List(NamedTuple):
    """Tensors with numbers in their names, and the one tensor that has a row for each of them.

    Attributes:
        before: the names up to the number.
        behind: what follows it, from a dot on.
        keys: the keys in the order of the numbers.
        whole: the name of the one tensor.
    """

    before: str
    behind: str
    keys: list[str]
    whole: str

    @property
    def globs(self) -> tuple[str, str]:
        """The patterns of the tensors and of the one tensor, equal for similar lists in other layers."""
        before = starred(self.before)
        return f"{before}.*{self.behind}", before + self.whole.removeprefix(self.before)


def stacks(checkpoint: Shapes, model: Shapes) -> list[Operator]:
    """Stack tensors whose numbers are gone, or unbind one with numbered parts now.

    For example, ``experts.0.w1.weight``, ``experts.1.w1.weight`` and so on become ``experts.w1``.
    """
    lacking = {key: shape for key, shape in checkpoint.items() if key not in model}
    wanted = {key: shape for key, shape in model.items() if key not in checkpoint}
    operators: list[Operator] = [
        *(stack_tensors(keys, whole) for keys, whole in _patterns(_lists(lacking, wanted), checkpoint)),
        *(unbind(whole, keys) for keys, whole in _patterns(_lists(wanted, lacking), model)),
    ]
    return operators if len(operators) <= MOST_OPERATORS else []


def _lists(apart: Shapes, whole: Shapes) -> Iterator[_List]:
    """Yield tensors of one shape numbered from 0, with the one that has equally many rows of that shape."""
    places: dict[tuple[str, str], dict[int, str]] = {}
    for key in apart:
        parts = key.split(".")
        for at, part in enumerate(parts):
            if part.isdecimal() and at:
                place = ".".join(parts[:at]), "".join(f".{each}" for each in parts[at + 1 :])
                places.setdefault(place, {})[int(part)] = key
    for (before, behind), numbered in places.items():
        keys = [numbered[number] for number in sorted(numbered)]
        shape = apart[keys[0]]
        if max(numbered) != len(keys) - 1 or shape is None or any(apart[key] != shape for key in keys):
            continue
        for name in (f"{before}{behind}", f"{before}{behind}".removesuffix(".weight")):
            if whole.get(name) == (len(keys), *shape):
                yield _List(before, behind, keys, name)
                break


def _patterns(lists: Iterable[_List], keys: Shapes) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors and of the one: as one pattern for all layers if it matches no other key."""
    alike: dict[tuple[str, str], list[_List]] = {}
    for each in lists:
        alike.setdefault(each.globs, []).append(each)
    for globs, several in alike.items():
        if matches_only(globs[0], [key for each in several for key in each.keys], keys):
            yield globs
        else:
            yield from ((f"{each.before}.*{each.behind}", each.whole) for each in several)
