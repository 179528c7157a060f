"""Group keys that differ only in numbers: ``layers.{0-16,18-31}.weight``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

_Said = TypeVar("_Said", bound="Hashable")


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that differ only in indices.

    Attributes:
        pattern: ``layers.{0-16,18-31}.attn.q_proj.weight``. It expands to exactly `keys`. Braces that belong
            to a key are doubled. Not safe to print: see `escape`.
        keys: in natural order, at least one.
    """

    pattern: str
    keys: tuple[str, ...]


def group(keys: Iterable[str]) -> list[Group]:
    """Group keys that differ only in indices, in the order of each group's first key.

    Every key is in exactly one group, and a group's pattern covers its own keys only. If a key has several
    indices and not every combination exists (blocks of unequal depth), there are several groups. An index is
    a number between dots (``layers.3``). A number inside a name (``denselayer12``) counts as an index only if
    it takes at least three values, so that ``fc1`` and ``fc2`` keep their names.
    """
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    families: dict[tuple[str, ...], list[str]] = {}
    for key in order:
        families.setdefault(tuple(_INDEX.split(key)[::2]), []).append(key)
    groups: list[Group] = []
    for texts, family in families.items():
        if len(family) == 1:
            groups.append(Group(_doubled(family[0]), (family[0],)))
        else:
            points = [tuple(map(int, _INDEX.findall(key))) for key in family]
            groups += [_group(texts, box) for box in _boxes(points, _least_values(texts))]
    return sorted(groups, key=lambda group: min(map(order.__getitem__, group.keys)))


def grouped(pairs: Iterable[tuple[_Said, str]]) -> Iterator[tuple[_Said, Group]]:
    """Group keys of which the same is said, from (what is said, key), in the order of first appearance."""
    alike: dict[_Said, list[str]] = {}
    for said, key in pairs:
        alike.setdefault(said, []).append(key)
    return ((said, each) for said, keys in alike.items() for each in group(keys))


# A number without leading zeros, so that it can be written back, and of at most nine digits.
_INDEX = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")

_Box = tuple[tuple[int, ...], ...]


def _least_values(texts: Sequence[str]) -> list[int]:
    """Return, for each index, how many values it must take before it is shown as a range."""
    between_dots = [before[-1:] in ("", ".") and after[:1] in ("", ".") for before, after in pairwise(texts)]
    return [2 if dotted else 3 for dotted in between_dots]


def _boxes(points: list[tuple[int, ...]], least: Sequence[int]) -> list[_Box]:
    """Cover the points with few disjoint products of index sets (greedily, so not always the fewest)."""
    whole: list[_Box] = [tuple((value,) for value in point) for point in points]
    varying = [place for place in range(len(points[0])) if len({point[place] for point in points}) > 1][:4]
    answers = []
    for order in (varying, varying[::-1]):
        boxes = whole
        for place in order:
            boxes = _merged(boxes, place, least[place])
        answers.append(boxes)
    return min(answers, key=len)


def _merged(boxes: list[_Box], place: int, least: int) -> list[_Box]:
    """Merge boxes that differ only at `place`, if `place` then has at least `least` values."""
    alike: dict[tuple[_Box, _Box], list[tuple[int, ...]]] = {}
    for box in boxes:
        alike.setdefault((box[:place], box[place + 1 :]), []).append(box[place])
    if len(alike) == len(boxes):
        return boxes
    merged: list[_Box] = []
    for (before, after), values in alike.items():
        if len(values) > 1:
            union = tuple(sorted(value for several in values for value in several))
            values = [union] if len(union) >= least else values
        merged += [(*before, value, *after) for value in values]
    return merged


def _group(texts: Sequence[str], box: _Box) -> Group:
    pattern = "".join(_woven([_doubled(text) for text in texts], [_range(values) for values in box]))
    keys = tuple("".join(_woven(texts, map(str, point))) for point in product(*box))
    return Group(pattern, keys)


def _woven(texts: Sequence[str], between: Iterable[str]) -> Iterator[str]:
    for text, middle in zip(texts, between, strict=False):
        yield text
        yield middle
    yield texts[-1]


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _range(values: Sequence[int]) -> str:
    """Return ``{0-16,18-31}``, or the number itself if there is only one."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return (
        "{"
        + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
        + "}"
    )
