"""Join or split projections: two or three tensors become one, or the reverse."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.keys import select

from .steps import Step
from .templates import template

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from .templates import Shape, Shapes

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
_KEY_VALUE = (("k", "v"), ("key", "value"), ("k_proj", "v_proj"), ("to_k", "to_v"), ("wk", "wv"))
_GATED = (("gate_proj", "up_proj"),)
# Names for which the rows of q come before those of k and v, and a gate's before those that it multiplies.
_JOINED = ("qkv.", "qkv_proj.", "Wqkv.", "to_qkv.", "in_proj.", "in_proj_")
_JOINED_KEY_VALUE = ("kv.", "kv_proj.", "to_kv.")
_JOINED_GATED = ("gate_up_proj.",)
# Rows are head by head, or in columns as in GPT-2: shapes can't tell.
_WOVEN = ("query_key_value.", "linear_qkv.", "c_attn.")
FUSED = frozenset(name.rstrip("._") for name in _JOINED + _WOVEN)
_LEAF = "(weight|bias)"
MOST_STEPS = 8


def fuses(checkpoint: Shapes, model: Shapes) -> tuple[list[Step], dict[str, Shape], set[str]]:
    """Find steps that join or split every layer's projections to match the model.

    There are none unless both sides have equally many layers, of the same sizes, named in one way. Any other
    renaming is left to `renaming`.

    Returns:
        The steps, the checkpoint after them, and keys of either side to leave alone: projections that were
        joined or split in an unknown way. Otherwise one of them, renamed and grown, could pass for all.
    """
    steps: list[Step] = []
    after, unknown = dict(checkpoint), set[str]()
    for apart, joined in (
        (APART, _JOINED + _WOVEN),
        (_KEY_VALUE, _JOINED_KEY_VALUE),
        (_GATED, _JOINED_GATED),
    ):
        lacking = {key: shape for key, shape in after.items() if key not in model and key not in unknown}
        wanted = {key: shape for key, shape in model.items() if key not in after and key not in unknown}
        for few, many in ((apart, joined), (joined, apart)):
            old, new = _styles(lacking, few), _styles(wanted, many)
            if old and new:
                found = list(_steps(old[0], new[0], after)) if _known(old, new) else []
                if 0 < len(found) <= MOST_STEPS:
                    steps += found
                    after = _after(old[0], new[0], after)
                else:
                    styles = [*old, *new]
                    unknown |= {key for each in styles for place in each.places for key in each.keys(place)}
                break
    return steps, after, unknown


def _known(old: Sequence[_Style], new: Sequence[_Style]) -> bool:
    """Return whether both sides have one style of the same sizes, and the split is unambiguous."""
    return (
        len(old) == len(new) == 1
        and old[0].sizes == new[0].sizes
        and not (old[0].woven or new[0].woven)
        and _unambiguous(new[0])
    )


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

    def keys(self, place: Place) -> list[str]:
        before, leaf = place
        return [f"{before}{name}{leaf}" for name in self.names]


def _joint(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _styles(shapes: Shapes, known: Iterable[tuple[str, ...] | str]) -> list[_Style]:
    """Return those known styles of names of projections, apart or joined, that occur."""
    styles = []
    for each in known:
        names = (each,) if isinstance(each, str) else tuple(f"{name}." for name in each)
        first = re.compile(rf"((?:.*\.)?){re.escape(names[0])}{_LEAF}", re.DOTALL)
        style = _Style(names, {})
        for match in filter(None, map(first.fullmatch, shapes)):
            place = match[1], match[2]
            found = [shapes.get(key) for key in style.keys(place)]
            sized = tuple(shape for shape in found if shape is not None and 1 <= len(shape) <= 2)
            if len(sized) == len(names) and len({shape[1:] for shape in sized}) == 1:
                style.places[place] = sized
        if style.places:
            styles.append(style)
    return styles


def _unambiguous(new: _Style) -> bool:
    """Return whether all tensors of the same joint shape are split in the same way."""
    cuts = {(leaf, _joint(shapes), shapes) for (_, leaf), shapes in new.places.items()}
    return len(cuts) == len(new.sizes)


def _steps(old: _Style, new: _Style, keys: Collection[str]) -> Iterator[Step]:
    for leaf in dict.fromkeys(leaf for _, leaf in old.places):
        befores = [before for before, each in old.places if each == leaf]
        for before in _patterns(befores, old.keys(("", leaf))[0], keys):
            olds, news = old.keys((before, leaf)), new.keys((before, leaf))
            if len(olds) > 1:
                yield Step("concat", (olds, news[0]), {"dim": 0})
            else:
                yield Step("split", (olds[0], news), {"dim": 0})


def _patterns(befores: list[str], rest: str, keys: Collection[str]) -> list[str]:
    """Return few globs for the parts before `rest`: one for all, one per block, or the parts themselves."""
    for globs in (
        ["*."],
        list(dict.fromkeys(".".join(template(each)).replace("#", "*") for each in befores)),
    ):
        matched = [key for glob in globs for key in select(f"{glob}{rest}", keys)]
        if sorted(matched) == sorted(f"{before}{rest}" for before in befores):
            return globs
    return befores


def _after(old: _Style, new: _Style, checkpoint: Shapes) -> dict[str, Shape]:
    shapes = {(leaf, _joint(shapes)): shapes for (_, leaf), shapes in new.places.items()}
    written: dict[str, dict[str, Shape]] = {}
    for place, sizes in old.places.items():
        first, *others = old.keys(place)
        written |= {other: {} for other in others}
        written[first] = dict(zip(new.keys(place), shapes[place[1], _joint(sizes)], strict=True))
    return {
        name: shape for key, was in checkpoint.items() for name, shape in written.get(key, {key: was}).items()
    }
