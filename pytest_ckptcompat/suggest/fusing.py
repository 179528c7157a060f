"""Tensors that became one, or the reverse: projections that are joined, lists that are stacked."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.recipes.operators import concat, split, stack_tensors, unbind

from .templates import matches_only, starred

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pytest_ckptcompat.recipes.base import Operator
    from pytest_ckptcompat.recipes.per_tensor import Shape

    from .templates import Shapes

Place = tuple[str, str]
"""The part of a key before the names of a layer's projections, and the leaf after them."""

APART = (
    ("q", "k", "v"),
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("linear_q", "linear_k", "linear_v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("Wq", "Wk", "Wv"),
)
# Names for which the rows of q come before those of k and v, and a gate's before those that it multiplies.
_JOINED = ("qkv.", "qkv_proj.", "Wqkv.", "to_qkv.", "in_proj.", "in_proj_")
# Rows are head by head, or in columns as in GPT-2: shapes can't tell.
_WOVEN = ("query_key_value.", "linear_qkv.", "c_attn.")
FUSED = frozenset(name.rstrip("._") for name in _JOINED + _WOVEN)
_KINDS = (
    (APART, _JOINED + _WOVEN),
    (
        (("k", "v"), ("key", "value"), ("k_proj", "v_proj"), ("to_k", "to_v"), ("wk", "wv")),
        ("kv.", "kv_proj.", "to_kv."),
    ),
    ((("gate_proj", "up_proj"),), ("gate_up_proj.",)),
)
_PROJECTION = re.compile(r"((?:.*\.)?)([^.]+\.|in_proj_)(weight|bias)", re.DOTALL)
MOST_FUSING, MOST_STACKING = 8, 16
"""The most operators of a suggestion that join or split, and that stack or unbind."""


def fuses(checkpoint: Shapes, model: Shapes) -> tuple[list[concat | split], dict[str, Shape], set[str]]:
    """Join or split every layer's projections to match the model.

    Nothing is done unless both sides have equally many layers, of the same sizes, named in one way. Any other
    renaming is left to `renaming`.

    Returns:
        The operators, the checkpoint after them, and keys of either side to leave alone: projections that
        were joined or split in an unknown way. Otherwise one of them, renamed and grown, could pass for all.
    """
    operators: list[concat | split] = []
    after, unknown = dict(checkpoint), set[str]()
    for apart, joined in _KINDS:
        lacking = {key: shape for key, shape in after.items() if key not in model and key not in unknown}
        wanted = {key: shape for key, shape in model.items() if key not in after and key not in unknown}
        for few, many in ((apart, joined), (joined, apart)):
            if not (olds := _styles(lacking, few)) or not (news := _styles(wanted, many)):
                continue
            found = list(_operators(olds[0], news[0], after)) if _known(olds, news) else []
            if 0 < len(found) <= MOST_FUSING:
                operators += found
                after = _after(olds[0], news[0], after)
            else:
                unknown.update(
                    key for style in (*olds, *news) for place in style.places for key in style.keys(place)
                )
            break
    return operators, after, unknown


def _known(olds: Sequence[_Style], news: Sequence[_Style]) -> bool:
    """Return whether both sides have one style of the same sizes, and the split is unambiguous."""
    if len(olds) > 1 or len(news) > 1 or olds[0].woven or news[0].woven or olds[0].sizes != news[0].sizes:
        return False
    cuts = {(leaf, _joint(shapes), shapes) for (_, leaf), shapes in news[0].places.items()}
    return len(cuts) == len(news[0].sizes)


@dataclass(frozen=True, slots=True)
class _Style:
    """Projections with one style of names.

    Attributes:
        names: the names between a place's two parts: of each tensor, or of one.
        places: place -> the shapes of its tensors, in the order of `names`.
    """

    names: tuple[str, ...]
    places: dict[Place, tuple[tuple[int, ...], ...]]

    @property
    def woven(self) -> bool:
        """Whether it is one tensor whose rows are not q, then k, then v."""
        return self.names[0] in _WOVEN

    @property
    def sizes(self) -> Counter[tuple[str, tuple[int, ...]]]:
        """The number of places with each leaf and joint shape."""
        return Counter((leaf, _joint(shapes)) for (_, leaf), shapes in self.places.items())

    def keys(self, place: Place) -> tuple[str, ...]:
        before, leaf = place
        return tuple(f"{before}{name}{leaf}" for name in self.names)


def _joint(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _styles(shapes: Shapes, known: Iterable[tuple[str, ...] | str]) -> list[_Style]:
    """Return those known styles of names of projections, apart or joined, that occur."""
    places: dict[str, list[Place]] = {}
    for match in filter(None, map(_PROJECTION.fullmatch, shapes)):
        before, name, leaf = match.groups()
        places.setdefault(name, []).append((before, leaf))
    styles = []
    for each in known:
        style = _Style((each,) if isinstance(each, str) else tuple(f"{name}." for name in each), {})
        for place in places.get(style.names[0], ()):
            found = [shapes.get(key) for key in style.keys(place)]
            sized = tuple(shape for shape in found if shape is not None and 1 <= len(shape) <= 2)
            if len(sized) == len(found) and len({shape[1:] for shape in sized}) == 1:
                style.places[place] = sized
        if style.places:
            styles.append(style)
    return styles


def _operators(old: _Style, new: _Style, keys: Collection[str]) -> Iterator[concat | split]:
    for leaf in dict.fromkeys(leaf for _, leaf in old.places):
        befores = [before for before, each in old.places if each == leaf]
        for before in _patterns(befores, old.keys(("", leaf))[0], keys):
            olds, news = old.keys((before, leaf)), new.keys((before, leaf))
            yield concat(olds, news[0], dim=0) if len(olds) > 1 else split(olds[0], news, dim=0)


def _patterns(befores: list[str], rest: str, keys: Collection[str]) -> list[str]:
    """Return few globs for the parts before `rest`: one for all, one per block, or the parts themselves."""
    for globs in (["*."], list(dict.fromkeys(map(starred, befores)))):
        matched = [key for glob in globs for key in select(f"{glob}{rest}", keys)]
        if sorted(matched) == sorted(f"{before}{rest}" for before in befores):
            return globs
    return befores


def _after(old: _Style, new: _Style, checkpoint: Shapes) -> dict[str, Shape]:
    cuts = {(leaf, _joint(shapes)): shapes for (_, leaf), shapes in new.places.items()}
    made: dict[str, dict[str, Shape]] = {}
    for place, sizes in old.places.items():
        first, *others = old.keys(place)
        made |= {other: {} for other in others}
        made[first] = dict(zip(new.keys(place), cuts[place[1], _joint(sizes)], strict=True))
    return {
        name: shape for key, was in checkpoint.items() for name, shape in made.get(key, {key: was}).items()
    }


# -- lists of tensors, such as experts ----------------------------------------------------------------------


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
        *(stack_tensors(keys, whole) for keys, whole in _names(_lists(lacking, wanted), checkpoint)),
        *(unbind(whole, keys) for keys, whole in _names(_lists(wanted, lacking), model)),
    ]
    return operators if len(operators) <= MOST_STACKING else []


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


def _names(lists: Iterable[_List], keys: Shapes) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors and of the one: as one pattern for all layers if it matches no other key."""
    alike: dict[tuple[str, str], list[_List]] = {}
    for each in lists:
        alike.setdefault(each.globs, []).append(each)
    for globs, several in alike.items():
        if matches_only(globs[0], [key for each in several for key in each.keys], keys):
            yield globs
        else:
            yield from ((f"{each.before}.*{each.behind}", each.whole) for each in several)
