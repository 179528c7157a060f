"""Recurrent layers: their rows are gates, one block of units each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from .changes import Explained, differing
from .steps import Step

if TYPE_CHECKING:
    from collections.abc import Collection

    from .changes import Changes, Sizes

_RECURRENT = re.compile(
    r"(?P<module>(?:.*\.)?)(?P<kind>weight|bias)_(?P<side>ih|hh|hr)(?:_l(?P<layer>[0-9]+))?(?P<back>_reverse)?",
    re.DOTALL,
)
_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}


def gates(changes: Changes, left: Collection[str]) -> Explained:
    """Find how recurrent layers get more units: gate by gate, and no weight takes the new ones in.

    A new unit is then a copy of an old one that nothing listens to, so all that was computed stays. Rows of
    one gate are none of another's: where the kind of the layer has changed, nothing is explained.
    """
    modules: dict[str, list[str]] = {}
    for key in left:
        if found := _RECURRENT.fullmatch(key):
            modules.setdefault(found["module"], []).append(key)
    explained = Explained()
    for path, keys in modules.items():
        if all(takes_more(key, *changes.changed[key]) for key in keys):
            continue  # as any other layer may
        layer = _layer(changes, path)
        if layer is None or not all(layer.grows(key, *changes.changed[key]) for key in keys):
            explained.barred |= {*keys, *_consumers(changes, path, left, layer)}
            continue
        for key in keys:
            explained.steps[key] = layer.steps(key, *changes.changed[key])
        for key in _consumers(changes, path, left, layer):
            explained.steps[key] = (layer.taking_no_more(layer.directions),)
    return explained


def takes_more(key: str, old: Sizes, new: Sizes) -> bool:
    """Whether a weight is that of a recurrent layer's inputs, and has more columns alone."""
    found = _RECURRENT.fullmatch(key)
    first = found is not None and found["side"] == "ih" and int(found["layer"] or 0) == 0
    return first and differing(old, new) == [1] and new[1] > old[1]


@dataclass(frozen=True)
class _Layer:
    """A recurrent layer: how many gates, units before and after, and directions."""

    gates: int
    old: int
    new: int
    directions: int

    def grows(self, key: str, old: Sizes, new: Sizes) -> bool:
        """Whether a tensor's change is that of the units, and nothing else."""
        found = _RECURRENT.fullmatch(key)
        assert found is not None
        rows = (old[0], new[0]) == (self.gates * self.old, self.gates * self.new)
        if found["kind"] == "bias":
            return rows
        times = 1 if found["side"] == "hh" else self.directions
        columns = (old[1], new[1])
        taken = columns == (times * self.old, times * self.new)
        inner = found["side"] == "hh" or int(found["layer"] or 0) > 0
        return rows and (taken if inner else columns[0] == columns[1])

    def steps(self, key: str, old: Sizes, new: Sizes) -> tuple[Step, ...]:
        """Copies of rows in every gate, and columns that take nothing in."""
        blocks = {"blocks": self.gates} if self.gates > 1 else {}
        rows = Step("tile", (), {"dim": 0, **blocks})
        if differing(old, new) == [0]:
            return (rows,)
        found = _RECURRENT.fullmatch(key)
        return rows, self.taking_no_more(1 if found and found["side"] == "hh" else self.directions)

    @staticmethod
    def taking_no_more(directions: int) -> Step:
        """New columns of zeros, those of each direction behind its old ones."""
        blocks = {"blocks": directions} if directions > 1 else {}
        return Step("append", (), {"dim": 1, **blocks})


def _layer(changes: Changes, path: str) -> _Layer | None:
    """What the weights of a recurrent layer say of it; None where they do not say the same."""
    shapes = [
        (changes.checkpoint.get(f"{path}weight_hh{end}"), changes.model.get(f"{path}weight_hh{end}"))
        for end in ("", "_l0")
    ]
    known = [(old, new) for old, new in shapes if old is not None and new is not None]
    if len(known) != 1 or f"{path}weight_hr_l0" in changes.model:
        return None
    old, new = known[0]
    count, rest = divmod(new[0], new[1])
    kind = _GATES.get(type(changes.modules.get(path.removesuffix("."))), count)
    if rest or count != kind or old[0] != count * old[1] or new[1] <= old[1]:
        return None
    return _Layer(count, old[1], new[1], 2 if f"{path}weight_hh_l0_reverse" in changes.model else 1)


def _consumers(changes: Changes, path: str, left: Collection[str], layer: _Layer | None) -> list[str]:
    """Weights behind a recurrent layer that take its units in, up to the next one."""
    if layer is None:
        return []
    columns = (layer.directions * layer.old, layer.directions * layer.new)
    own = [key for key in changes.order if key.startswith(path) and _RECURRENT.fullmatch(key)]
    last = max(changes.order[key] for key in own)

    def takes_in(key: str, old: Sizes, new: Sizes) -> bool:
        behind = changes.order[key] > last and key in changes.layers and changes.layers[key].outputs == 0
        return behind and differing(old, new) == [1] and (old[1], new[1]) == columns

    return [key for key in left if takes_in(key, *changes.changed[key])]


def hidden_sizes(key: str, shape: Sizes) -> tuple[int, ...]:
    """How many units a recurrent layer gives, in one direction and in both, as one of its weights tells."""
    found = _RECURRENT.fullmatch(key)
    return (shape[-1], 2 * shape[-1]) if found and found["side"] in ("hh", "hr") else ()
