"""What became of a key whose shape changed: told from its shapes, its name and its neighbours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isqrt

from .steps import Step, cover
from .templates import Shapes, template

Sizes = tuple[int, ...]
Changes = Mapping[str, tuple[Sizes, Sizes]]

MOST_WIDENED = 8
MOST_LISTED = 1000
"""Rows that a suggestion lists one by one; nobody would read more."""
_POSITIONS = re.compile(
    r"(?:^|[._])(?:abs_|rel_)?pos(?:ition|itional|itions)?(?:[._]|$)|pos_?emb|position_bias", re.IGNORECASE
)
_VOCABULARY = re.compile(
    r"(?:^|[._])(?:wte|lm_head|(?:\w+_)?emb(?:ed|edding|eddings)?(?:_tokens|_in)?)(?:[.]|$)", re.IGNORECASE
)


def reshapes(checkpoint: Shapes, model: Shapes) -> list[Step] | None:
    """Steps that give every key of the checkpoint the shape that it has in the model.

    Returns:
        None where one of the keys changed in a way for which no operator stands out.
    """
    changed: dict[str, tuple[Sizes, Sizes]] = {}
    for key, old in checkpoint.items():
        new = model.get(key)
        if old is not None and new is not None and old != new:
            changed[key] = old, new
    widened, widen = _widened(changed)
    pictures = any(shape is not None and len(shape) == 4 for shape in checkpoint.values())
    steps: dict[str, Step] = {}
    for key, (old, new) in changed.items():
        if key not in widened:
            step = _step(key, old, new, pictures)
            if step is None:
                return None
            steps[key] = step
    transposed = [key for key, step in steps.items() if step.operator == "transpose"]
    square = _square_too(transposed, checkpoint)
    if square is None:
        return None
    steps |= {key: Step("transpose", ()) for key in square}
    return [*_merged(steps, list(checkpoint)), *widen]


def _step(key: str, old: Sizes, new: Sizes, pictures: bool) -> Step | None:
    """The operator for one key, its name left out. Where a model sees `pictures`, positions are a grid."""
    if len(old) == 2 and old == new[::-1]:
        return Step("transpose", ())
    dims = _differing(old, new)
    if _larger_kernel(key, old, new, dims):
        return Step("pad", ())
    if len(dims) != 1:
        return None
    (dim,) = dims
    if _POSITIONS.search(key):
        # A text may have 1024 positions as well: a square number alone says little.
        fewest_tokens = 0 if pictures or "relative" in key else 1
        if step := _resampled(old[dim], new[dim], fewest_tokens):
            return step
    if dim == 1 and len(old) >= 3 and min(old[1], new[1]) <= 4:
        return _stem(old[1], new[1])
    if dim == 0 or (dim == 1 and len(old) == 3 and old[0] == 1):
        return _resized(key, old[dim], new[dim], dim)
    return None


def _differing(old: Sizes, new: Sizes) -> list[int]:
    if len(old) != len(new):
        return []
    return [dim for dim, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]


def _larger_kernel(key: str, old: Sizes, new: Sizes, dims: Sequence[int]) -> bool:
    """Whether a convolution's kernel grew around its centre, which only an odd size has.

    Of even kernels, most of which cut a picture into patches, a shape does not tell how they grew.
    """
    return (
        key.rpartition(".")[2] == "weight"
        and not _POSITIONS.search(key)
        and len(old) - 2 in (1, 2, 3)
        and bool(dims)
        and min(dims) >= 2
        and all(old[dim] % 2 and new[dim] % 2 and old[dim] < new[dim] <= _WIDEST_KERNEL for dim in dims)
    )


_WIDEST_KERNEL = 31


def _resized(key: str, old: int, new: int, dim: int) -> Step | None:
    if new < old:
        return Step("select", (), {"dim": dim, "index": list(range(new))}) if new <= MOST_LISTED else None
    if _VOCABULARY.search(key) and not _POSITIONS.search(key):
        return Step("append", (), {"dim": dim, "init": "mean"})
    return Step("tile", (), {"dim": dim})


def _stem(old: int, new: int) -> Step | None:
    """Input channels of a convolution: more of them repeat the old ones, fewer are their sum."""
    if new > old:
        return Step("repeat_channels", ())
    if old % new == 0:
        return Step("reduce", (), {"dim": 1, "groups": new, "op": "sum"})
    return None


def _resampled(old: int, new: int, fewest_tokens: int) -> Step | None:
    """Positions of a square grid, behind up to two tokens that have no place in it."""
    for tokens in range(fewest_tokens, 3):
        before, after = isqrt(max(old - tokens, 0)), isqrt(max(new - tokens, 0))
        if before**2 + tokens == old and after**2 + tokens == new and min(before, after) > 1:
            prefix = {"prefix_tokens": tokens} if tokens else {}
            return Step("resample", (), {"size": (after, after), **prefix})
    return None


# -- changes that concern several modules -------------------------------------------------------------------


def _widened(changed: Changes) -> tuple[set[str], list[Step]]:
    """Hidden layers that got more units: one module gives them, others take them.

    Returns:
        The keys that the steps are about, and the steps.
    """
    rows = {key: sizes for key, sizes in changed.items() if _differing(*sizes) == [0]}
    columns = {
        key: sizes
        for key, sizes in changed.items()
        if _differing(*sizes) == [1]
        and _module(key)
        and (len(sizes[0]) == 2 or min(sizes[0][1], sizes[1][1]) > 4)
    }
    order = {key: place for place, key in enumerate(changed)}
    producers = [key for key, (old, _) in rows.items() if len(old) > 1 and _module(key)]
    keys: set[str] = set()
    steps: list[Step] = []
    for key in producers:
        old, new = (sizes[0] for sizes in rows[key])
        consumers = [
            other
            for other, sizes in columns.items()
            if other not in keys
            and order[other] > order[key]
            and _follows(old, new, sizes[0][1], sizes[1][1])
            and _next_producer(key, other, producers, rows, order) is None
        ]
        if new > old and consumers:
            along = [
                other
                for other, sizes in rows.items()
                if (sizes[0][0], sizes[1][0]) == (old, new)
                and order[key] < order[other] < order[consumers[-1]]
                and len(sizes[0]) == 1
            ]
            norms = list(dict.fromkeys(_module(other) for other in along if _module(other) != _module(key)))
            options = {"norms": norms} if norms else {}
            steps.append(Step("widen", (_module(key), [_module(other) for other in consumers]), options))
            keys.update([key, *consumers, *along])
    return (keys, steps) if len(steps) <= MOST_WIDENED else (set(), [])


def _follows(old: int, new: int, columns: int, columns_after: int) -> bool:
    """Whether so many columns are those of the units, each as often as the other (behind a flatten)."""
    return columns % old == 0 and columns_after == columns // old * new


def _next_producer(
    key: str, consumer: str, producers: Iterable[str], rows: Changes, order: Mapping[str, int]
) -> str | None:
    """Another module that gives as many units, between the two."""
    return next(
        (
            other
            for other in producers
            if order[key] < order[other] < order[consumer] and rows[other][0][0] == rows[key][0][0]
        ),
        None,
    )


def _module(key: str) -> str:
    """The module of a weight; ``""`` for anything else."""
    module, _, leaf = key.rpartition(".")
    return module if leaf in ("weight", "bias", "running_mean", "running_var") else ""


def _square_too(transposed: Sequence[str], checkpoint: Shapes) -> list[str] | None:
    """Square weights that were transposed along: their shape can't tell, but their name does.

    Returns:
        None where a square weight stands beside transposed ones and nothing tells whether it was transposed.
    """
    leaves = {tuple(key.split(".")[-2:]) for key in transposed}
    blocks = {template(key)[:-2] for key in transposed}
    square = []
    for key, shape in checkpoint.items():
        if shape is None or len(shape) != 2 or shape[0] != shape[1]:
            continue
        if tuple(key.split(".")[-2:]) in leaves:
            square.append(key)
        elif transposed and template(key)[:-2] in blocks:
            return None
    return square


def _merged(steps: Mapping[str, Step], keys: Sequence[str]) -> list[Step]:
    """Keys of which the same is to be done, as few operators as possible."""
    alike: dict[str, list[str]] = {}
    for key, step in steps.items():
        alike.setdefault(repr(step), []).append(key)
    merged = []
    for chosen in alike.values():
        step = steps[chosen[0]]
        merged += [
            Step(step.operator, (pattern, *step.arguments), step.options) for pattern in cover(chosen, keys)
        ]
    return merged
