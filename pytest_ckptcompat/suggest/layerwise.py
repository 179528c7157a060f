"""Explain changes from one layer alone: outputs, inputs, kernels, axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import isqrt
from typing import TYPE_CHECKING

from torch import nn

from pytest_ckptcompat.recipes.operators import append, pad, reduce, repeat_channels, reshape, tile, transpose

from .changes import ANY, Explained, differing, first_rows, module_of, projects, unitwise
from .recurrent import hidden_sizes, takes_more
from .tables import is_position
from .templates import template

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from .changes import Changes, Operators, Sizes
    from .templates import Shapes

_SPECTRAL = {"weight_u", "weight_v", "_u", "_v"}
"""The unit vectors of a spectral norm."""
_WIDEST_KERNEL = 31
_GATES = (2, 3, 4)
"""The numbers of parts that a gated layer's outputs may be split into."""
_TRANSPOSED, _RESHAPED, _PADDED = (transpose(ANY),), (reshape(ANY),), (pad(ANY),)
_MORE_INPUTS, _MORE_CHANNELS = (append(ANY, dim=1),), (repeat_channels(ANY),)


def layerwise(changes: Changes, left: Collection[str]) -> Explained:
    """Explain each key by its shapes and its module."""
    look = _Look(changes)
    found = Explained()
    for key in changes.budget.each(left):
        found.put(key, look.operators(key, *changes.changed[key]))
    transposed = [key for key, operators in found.operators.items() if operators == _TRANSPOSED]
    square = _square_too(transposed, changes)
    if square is None or not any(look.bias_stays(key) for key in transposed):
        found.bar(transposed)
    else:
        found.operators |= dict.fromkeys(square, _TRANSPOSED)
    return found


@dataclass
class _Look:
    """Finds the operator for a key from the keys around it."""

    changes: Changes

    def operators(self, key: str, old: Sizes, new: Sizes) -> Operators:
        """Return the operator for a key; none if none stands out."""
        if len(old) == 2 and old == new[::-1]:
            return _TRANSPOSED if self._bias_fits(key) else ()
        if _same_numbers(old, new):
            return _RESHAPED
        dims = differing(old, new)
        if _larger_kernel(key, old, new, dims):
            return _PADDED
        if len(dims) != 1:
            return ()
        (dim,) = dims
        if key in self.changes.layers:
            return self._of_layer(key, old, new, dim)
        if takes_more(key, old, new):
            return () if self._fed(key, old, new) else _MORE_INPUTS
        alone = len(old) == 1 and not self._woven(key, old[0], new[0])
        return _resized(old[0], new[0], 0) if alone and not self._numbers(key, old[0], new[0]) else ()

    def _of_layer(self, key: str, old: Sizes, new: Sizes, dim: int) -> Operators:
        layer = self.changes.layers[key]
        depthwise = old[1] == new[1] == 1 and layer.groups == new[0]
        if not (layer.takes_all or (depthwise and dim == 0)):
            return ()  # added or removed outputs would move the others to other groups
        plain = key.rpartition(".")[2] == "weight"  # not a part that is divided by its norm
        if dim == layer.outputs or (dim == 0 and layer.outputs is None):
            if (
                projects(key, self.changes.model)
                or (dim and not plain)
                or self._numbers(key, old[dim], new[dim])
            ):
                return ()
            return _resized(old[dim], new[dim], dim)
        if not plain or dim != 1 or layer.outputs != 0 or self._fed(key, old, new):
            return ()
        if len(old) >= 3 and min(old[1], new[1]) <= 4:
            return _stem(old[1], new[1])
        return _MORE_INPUTS if new[1] > old[1] else ()

    def _fed(self, key: str, old: Sizes, new: Sizes) -> bool:
        """Return whether an earlier layer may give the inputs: plain, flattened, gated or one by one."""
        if old[1] == 1 and old[0] == new[1] > 4:
            return True
        place = self.changes.order[key]
        sides = zip(self._first_given, (old, new), strict=True)
        return any(
            given.get(size, place) < place
            for given, sizes in sides
            for size in (*_divisors(sizes[1]), *(sizes[1] * gates for gates in _GATES))
        )

    @cached_property
    def _first_given(self) -> tuple[dict[int, int], dict[int, int]]:
        """Number of channels -> the first key that gives it, in the checkpoint and in the model."""
        return self._given(self.changes.checkpoint), self._given(self.changes.model)

    def _given(self, shapes: Shapes) -> dict[int, int]:
        given: dict[int, int] = {}
        for key, shape in self.changes.budget.each(shapes.items()):
            place = self.changes.order.get(key)
            if place is None or shape is None or len(shape) < 2:
                continue
            module = self.changes.modules.get(module_of(key))
            layer = self.changes.layers.get(key)
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or layer is None:
                sizes = (shape[-1], *hidden_sizes(key, shape))
            else:
                sizes = (shape[layer.outputs or 0],)
            for size in sizes:
                given.setdefault(size, place)
        return given

    def _numbers(self, key: str, old: int, new: int) -> bool:
        """Return whether rows may be a router's: one for each module beside it, before and after."""
        return (old, new) in self._numbered.get(module_of(key).rpartition(".")[0], ())

    @cached_property
    def _numbered(self) -> dict[str, set[tuple[int, int]]]:
        """Module -> the old and new lengths of the lists in it."""
        each = self.changes.budget.each
        olds, news = (_lists(each(keys)) for keys in (self.changes.checkpoint, self.changes.model))
        counts: dict[str, set[tuple[int, int]]] = {}
        for path, numbers in olds.items():
            counts.setdefault(path.rpartition(".")[0], set()).add((len(numbers), len(news.get(path, ()))))
        return counts

    def _woven(self, key: str, old: int, new: int) -> bool:
        """Return whether rows of a vector can't be copied singly: they share a norm or belong to heads."""
        if key.rpartition(".")[2] in _SPECTRAL:
            return True
        module = self.changes.modules.get(module_of(key))
        over_all = isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))
        if over_all and not unitwise(
            module_of(key), (old, new), self.changes.checkpoint, self.changes.modules
        ):
            return True
        return projects(key, self.changes.model)

    def _bias_fits(self, key: str) -> bool:
        """Return whether the bias of a weight, if any, is unchanged."""
        bias = _bias(key)
        return self.changes.checkpoint.get(bias) == self.changes.model.get(bias)

    def bias_stays(self, key: str) -> bool:
        """Return whether there is a bias whose size is one of the weight's dimensions."""
        bias, weight = self.changes.checkpoint.get(_bias(key)), self.changes.checkpoint[key]
        return bias is not None and weight is not None and len(bias) == 1 and bias[0] in weight


def _lists(keys: Iterable[str]) -> dict[str, set[str]]:
    """Return modules with numbered children -> the numbers."""
    lists: dict[str, set[str]] = {}
    for key in keys:
        parts = key.split(".")
        for at, part in enumerate(parts):
            if part.isdecimal():
                lists.setdefault(".".join(parts[:at]), set()).add(part)
    return lists


def _divisors(number: int) -> set[int]:
    """Return all divisors except 1."""
    small = [each for each in range(1, isqrt(number) + 1) if number % each == 0]
    return {*small, *(number // each for each in small)} - {1}


def _bias(key: str) -> str:
    return ".".join([*key.split(".")[:-1], "bias"])


def _same_numbers(old: Sizes, new: Sizes) -> bool:
    """Return whether only dimensions of size 1 were added or removed, without moving others."""
    one, other = ([size for size in sizes if size != 1] for sizes in (old, new))
    return one == other and (len(one) != 1 or min(len(old), len(new)) == 1)


def _larger_kernel(key: str, old: Sizes, new: Sizes, dims: Sequence[int]) -> bool:
    """Return whether a convolution's kernel grew around its centre; only odd sizes have one.

    Most even kernels cut an image into patches, and a shape can't tell how they grew.
    """
    return (
        key.rpartition(".")[2] == "weight"
        and len(old) - 2 in (1, 2, 3)
        and bool(dims)
        and min(dims) >= 2
        and all(old[dim] % 2 and new[dim] % 2 and old[dim] < new[dim] <= _WIDEST_KERNEL for dim in dims)
        and not is_position(key)
    )


@cache
def _resized(old: int, new: int, dim: int) -> Operators:
    """Keep the first rows, or repeat rows."""
    return (tile(ANY, dim=dim),) if new > old else first_rows(dim, new)


def _stem(old: int, new: int) -> Operators:
    """Change the input channels of a convolution: more repeat the old ones, fewer are their sums."""
    if new > old:
        return _MORE_CHANNELS
    return (reduce(ANY, dim=1, groups=new, reduction="sum"),) if new and old % new == 0 else ()


def _square_too(transposed: Sequence[str], changes: Changes) -> list[str] | None:
    """Find square weights that were transposed too: their shape can't tell, but their name can.

    Returns:
        The keys, or None if nothing tells whether a square weight beside transposed ones was transposed.
    """
    leaves = {tuple(key.split(".")[-2:]) for key in transposed}
    blocks = {template(key)[:-2] for key in transposed}
    square = []
    for key, shape in changes.checkpoint.items() if transposed else ():
        if shape is None or len(shape) != 2 or shape[0] != shape[1]:
            continue
        if tuple(key.split(".")[-2:]) in leaves:
            square.append(key)
        elif template(key)[:-2] in blocks or isinstance(changes.modules.get(module_of(key)), nn.Linear):
            return None
    return square
