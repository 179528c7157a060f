"""Grow recurrent layers. Their rows are gates, with one block of units each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pytest_ckptcompat.recipes.operators import append, tile

from .changes import ANY, Explained, differing

if TYPE_CHECKING:
    from collections.abc import Collection

    from .changes import Changes, Operators, Sizes

_RECURRENT = re.compile(
    r"(?P<module>(?:.*\.)?)(?P<kind>weight|bias)_(?P<side>ih|hh|hr)(?:_l(?P<layer>[0-9]+))?(?P<back>_reverse)?",
    re.DOTALL,
)
_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}


def gates(changes: Changes, left: Collection[str]) -> Explained:
    """Give recurrent layers more units, gate by gate, with no effect on the outputs.

    A new unit is a copy of an old one whose output no weight uses, so everything computed stays the same.
    Rows of one gate can't serve another gate, so nothing is explained if the kind of layer changed.
    """
    modules: dict[str, list[str]] = {}
    for key in left:
        if found := _RECURRENT.fullmatch(key):
            modules.setdefault(found["module"], []).append(key)
    explained = Explained()
    for path, keys in modules.items():
        if all(takes_more(key, *changes.changed[key]) for key in keys):
            continue  # like any other layer
        layer = _layer(changes, path)
        if layer is None:
            explained.bar(keys)
            continue
        consumers = _consumers(changes, path, left, layer)
        if not all(layer.grows(key, *changes.changed[key]) for key in keys):
            explained.bar([*keys, *consumers])
            continue
        for key in keys:
            explained.put(key, layer.operators(key, *changes.changed[key]))
        for key in consumers:
            explained.put(key, (_unused_columns(layer.directions),))
    return explained


def takes_more(key: str, old: Sizes, new: Sizes) -> bool:
    """Return whether a weight is a recurrent layer's input weight, and only has more columns."""
    found = _RECURRENT.fullmatch(key)
    first = found is not None and found["side"] == "ih" and int(found["layer"] or 0) == 0
    return first and differing(old, new) == [1] and new[1] > old[1]


@dataclass(frozen=True)
class _Layer:
    """A recurrent layer: its numbers of gates, of units before and after, and of directions."""

    gates: int
    old: int
    new: int
    directions: int

    def grows(self, key: str, old: Sizes, new: Sizes) -> bool:
        """Return whether only the number of units changed in a tensor."""
        found = _RECURRENT.fullmatch(key)
        assert found is not None
        if not len(old) == len(new) == (1 if found["kind"] == "bias" else 2):
            return False
        rows = (old[0], new[0]) == (self.gates * self.old, self.gates * self.new)
        if found["kind"] == "bias":
            return rows
        times = 1 if found["side"] == "hh" else self.directions
        columns = (old[1], new[1])
        taken = columns == (times * self.old, times * self.new)
        inner = found["side"] == "hh" or int(found["layer"] or 0) > 0
        return rows and (taken if inner else columns[0] == columns[1])

    def operators(self, key: str, old: Sizes, new: Sizes) -> Operators:
        """Copy rows in every gate, and append columns of zeros."""
        rows = tile(ANY, dim=0, blocks=self.gates)
        if differing(old, new) == [0]:
            return (rows,)
        found = _RECURRENT.fullmatch(key)
        return rows, _unused_columns(1 if found and found["side"] == "hh" else self.directions)


def _unused_columns(directions: int) -> append:
    """Append columns of zeros, for each direction after its old ones."""
    return append(ANY, dim=1, blocks=directions)


def _layer(changes: Changes, path: str) -> _Layer | None:
    """Read a recurrent layer from its weights; return None if they disagree."""
    shapes = [
        (changes.checkpoint.get(f"{path}weight_hh{end}"), changes.model.get(f"{path}weight_hh{end}"))
        for end in ("", "_l0")
    ]
    known = [(old, new) for old, new in shapes if old is not None and new is not None]
    if len(known) != 1 or f"{path}weight_hr_l0" in changes.model:
        return None
    old, new = known[0]
    if not len(old) == len(new) == 2 or 0 in new:
        return None  # IndRNN has a vector
    count, rest = divmod(new[0], new[1])
    kind = _GATES.get(type(changes.modules.get(path.removesuffix("."))), count)
    if rest or count != kind or old[0] != count * old[1] or new[1] <= old[1]:
        return None
    return _Layer(count, old[1], new[1], 2 if f"{path}weight_hh_l0_reverse" in changes.model else 1)


def _consumers(changes: Changes, path: str, left: Collection[str], layer: _Layer) -> list[str]:
    """Return the weights after a recurrent layer that use its units, up to the next such layer."""
    columns = (layer.directions * layer.old, layer.directions * layer.new)
    own = [key for key in changes.order if key.startswith(path) and _RECURRENT.fullmatch(key)]
    last = max(changes.order[key] for key in own)

    def takes_in(key: str, old: Sizes, new: Sizes) -> bool:
        behind = changes.order[key] > last and key in changes.layers and changes.layers[key].outputs == 0
        return behind and differing(old, new) == [1] and (old[1], new[1]) == columns

    return [key for key in left if takes_in(key, *changes.changed[key])]


def hidden_sizes(key: str, shape: Sizes) -> tuple[int, ...]:
    """Return how many units a recurrent layer gives, in one direction and in both, from a weight's shape."""
    found = _RECURRENT.fullmatch(key)
    return (shape[-1], 2 * shape[-1]) if found and found["side"] in ("hh", "hr") else ()
