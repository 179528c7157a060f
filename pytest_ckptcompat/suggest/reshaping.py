"""What became of a key whose shape changed: told from its shapes, its name and its neighbours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

from torch import nn

from .layers import NO_MODULES, layers_of, module_of, projects, unitwise
from .steps import Step, cover
from .templates import template
from .widening import differing, widened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .layers import Layer, Modules
    from .templates import Shapes
    from .widening import Sizes

MOST_LISTED = 1000
"""Rows that a suggestion lists one by one; nobody would read more."""
_POSITIONS = re.compile(
    r"(?:^|[._])(?:abs_|rel_)?pos(?:ition|itional|itions)?(?:[._]|$)|pos_?emb|position_bias", re.IGNORECASE
)
_SPECTRAL = {"weight_u", "weight_v", "_u", "_v"}
"""Vectors of unit length from which a spectral norm is computed."""
_VOCABULARY = re.compile(
    r"(?:^|[._])(?:wte|lm_head|(?:\w+_)?emb(?:ed|edding|eddings)?(?:_tokens|_in)?)(?:[.]|$)", re.IGNORECASE
)


def reshapes(checkpoint: Shapes, model: Shapes, modules: Modules = NO_MODULES) -> list[Step] | None:
    """Steps that give every key of the checkpoint the shape that it has in the model.

    Args:
        checkpoint: the checkpoint's keys, by the names that the model has for them.
        model: the model's.
        modules: its modules by their paths, as far as they are known; where a weight's is not, its bias tells
            which dimension counts the outputs.

    Returns:
        None where one of the keys changed in a way for which no operator stands out.
    """
    changed: dict[str, tuple[Sizes, Sizes]] = {}
    for key, old in checkpoint.items():
        new = model.get(key)
        if old is not None and new is not None and old != new:
            changed[key] = old, new
    if not changed:
        return []
    layers = layers_of(checkpoint, model, modules)
    wider = widened(changed, layers, checkpoint, modules)
    if wider is None:
        return None
    grown, widen = wider
    look = _Look(checkpoint, model, modules, layers)
    steps: dict[str, Step] = {}
    for key, (old, new) in changed.items():
        if key not in grown:
            step = look.step(key, old, new)
            if step is None:
                return None
            steps[key] = step
    transposed = [key for key, step in steps.items() if step.operator == "transpose"]
    square = _square_too(transposed, checkpoint, modules)
    if square is None or (transposed and not any(look.bias_stays(key) for key in transposed)):
        return None
    steps |= {key: Step("transpose", ()) for key in square}
    return [*_merged(steps, list(checkpoint)), *widen]


@dataclass(frozen=True, slots=True)
class _Look:
    """The operator for one key, from all that its neighbours tell."""

    checkpoint: Shapes
    model: Shapes
    modules: Modules
    layers: Mapping[str, Layer]

    def step(self, key: str, old: Sizes, new: Sizes) -> Step | None:
        """The operator, its key left out; None where none stands out."""
        if len(old) == 2 and old == new[::-1]:
            return Step("transpose", ()) if self._bias_fits(key) else None
        dims = differing(old, new)
        if _larger_kernel(key, old, new, dims):
            return Step("pad", ())
        if len(dims) != 1:
            return None
        (dim,) = dims
        if _POSITIONS.search(key):
            # A text may have 1024 positions as well: a square number alone says little. In a model that
            # sees pictures, it says enough.
            pictures = any(shape is not None and len(shape) == 4 for shape in self.checkpoint.values())
            fewest_tokens = 0 if pictures or "relative" in key else 1
            if step := _resampled(old[dim], new[dim], fewest_tokens):
                return step
        if key in self.layers:
            return self._of_layer(key, old, new, dim)
        if dim == 0 and not self._woven(key, old[0], new[0]):
            return _resized(key, old[0], new[0], 0)
        if dim == 1 and len(old) == 3 and old[0] == 1:
            return _resized(key, old[1], new[1], 1)
        return None

    def _of_layer(self, key: str, old: Sizes, new: Sizes, dim: int) -> Step | None:
        layer = self.layers[key]
        depthwise = old[1] == new[1] == 1 and layer.groups == new[0]
        if not (layer.takes_all or (depthwise and dim == 0)):
            return None  # outputs that came or went would move all others to other groups
        plain = key.rpartition(".")[2] == "weight"  # and no part of one, that is divided by its norm
        if dim == layer.outputs or (dim == 0 and layer.outputs is None):
            if projects(key, self.model) or (dim and not plain):
                return None
            return _resized(key, old[dim], new[dim], dim)
        picture = plain and dim == 1 and layer.outputs == 0 and len(old) >= 3 and min(old[1], new[1]) <= 4
        return _stem(old[1], new[1]) if picture and not self._fed(key, old[1], new[1]) else None

    def _fed(self, key: str, old: int, new: int) -> bool:
        """Whether the inputs of a convolution may be another's outputs, and no picture's channels.

        They are as many, or as many in each group: and then the number of groups may have changed.
        """
        outputs, grouped = self.checkpoint[key], self.layers[key].groups == 0
        if outputs is not None and old == 1 and outputs[0] == new > 4:
            return True  # it may have been a depthwise one
        for other, layer in self.layers.items():
            if other == key:
                return False
            before, after = self.checkpoint[other], self.model[other]
            if before is None or after is None:
                continue
            dim = layer.outputs or 0
            whole = after[dim] % new == 0 if grouped else after[dim] == new
            if whole and before[dim] % old == 0:
                return True
        return False

    def _woven(self, key: str, old: int, new: int) -> bool:
        """Whether it is no vector of which rows can be copied one by one: its norm is over all of them."""
        if key.rpartition(".")[2] in _SPECTRAL:
            return True
        module = self.modules.get(module_of(key))
        over_all = isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))
        if over_all and not unitwise(module_of(key), (old, new), self.checkpoint, self.modules):
            return True
        return projects(key, self.model)

    def _bias_fits(self, key: str) -> bool:
        """Whether the bias beside a weight, if it has one, can stay."""
        bias = _bias(key)
        return self.checkpoint.get(bias) == self.model.get(bias)

    def bias_stays(self, key: str) -> bool:
        """Whether there is a bias that counts one dimension of the weight: its outputs, before and after."""
        bias, weight = self.checkpoint.get(_bias(key)), self.checkpoint[key]
        return bias is not None and weight is not None and len(bias) == 1 and bias[0] in weight


def _bias(key: str) -> str:
    return ".".join([*key.split(".")[:-1], "bias"])


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


def _square_too(transposed: Sequence[str], checkpoint: Shapes, modules: Modules) -> list[str] | None:
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
        elif transposed and (
            template(key)[:-2] in blocks or isinstance(modules.get(module_of(key)), nn.Linear)
        ):
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
