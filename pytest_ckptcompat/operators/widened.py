"""What `widen` promises, told from the tensors: units are copied, and their work is shared.

Nothing here may use how `widen` makes a tensor.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.keys import escape
from pytest_ckptcompat.proof.difference import same_bits
from pytest_ckptcompat.reading.stored import materialise

from .growing import bits, differing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .plan import State
    from .units import Split, Units


def uncopied(
    units: Units, before: State, after: State, mapping: Sequence[int] | None, noise_std: float
) -> Iterator[str]:
    """The rows that are not those of the units that they are copies of, but for the noise of new weights."""
    for key in units.rows:
        old, new = materialise(before[key]), materialise(after[key])
        originals = torch.tensor(mapping or [unit % len(old) for unit in range(len(new))])
        if len(new) != len(originals) or len(new) != len(units.origin):
            yield f"{escape(key)}: {len(new)} rows for {len(units.origin)} units"
            continue
        expected = bits(old)[originals].view(old.dtype)
        if noise_std and key in units.weights:
            yield from differing(key, expected, new, 8 * noise_std)
            firsts = dict(reversed([(unit, place) for place, unit in enumerate(originals.tolist())]))
            expected, new = old, new[[firsts[unit] for unit in range(len(old))]]
        yield from differing(key, expected, new)


def unshared(
    units: Units, before: State, after: State, mapping: Sequence[int] | None, split: Split
) -> Iterator[str]:
    """The columns of which those of a unit's copies do not sum up to its own."""
    for key, block in units.columns.items():
        old, new = materialise(before[key]), materialise(after[key])
        if new.shape[1] != block * len(units.origin):
            yield f"{escape(key)}: {new.shape[1]} columns for {len(units.origin)} units"
            continue
        count = old.shape[1] // block
        originals = torch.tensor(mapping or [unit % count for unit in range(len(units.origin))])
        parts = _apart(new, block).double()
        summed = torch.zeros_like(_apart(old, block), dtype=torch.float64)
        summed = summed.index_add(1, originals, parts).flatten(1, 2)
        precision = max(4 * torch.finfo(new.dtype).eps, 1e-12) * float(old.double().abs().max())
        yield from differing(key, old.double(), summed, precision)
        firsts = dict(reversed([(unit, place) for place, unit in enumerate(originals.tolist())]))
        added = torch.ones(len(originals), dtype=torch.bool)
        added[list(firsts.values())] = False
        if split == "zero" and bool(parts[:, added].any()):
            yield f"{escape(key)}: columns of new units are not zero"


def conditions(layers: Iterable[Units], before: State) -> str:
    """What the function is kept under besides, which tensors do not tell."""
    told: dict[str, None] = {}
    for units in layers:
        if any(block > 1 for block in units.columns.values()):
            told["if a flatten puts each unit's columns side by side"] = None
        if len(set(Counter(units.origin).values())) > 1 and any(
            _may_be_layer_norm(key, before) for key in units.rows
        ):
            told["but under no LayerNorm: copies are unequally many"] = None
    return "; ".join(told)


def twins(units: Units, after: State) -> tuple[int, int] | None:
    """A new unit and its original, if all their rows and columns have the same bits."""
    rows = [materialise(after[key]) for key in units.rows]
    columns = [_apart(materialise(after[key]), block) for key, block in units.columns.items()]
    for copy in units.copies:
        first = units.firsts[units.origin[copy]]
        if all(same_bits(each[first], each[copy]) for each in rows) and all(
            same_bits(each[:, first], each[:, copy]) for each in columns
        ):
            return first, copy
    return None


def _may_be_layer_norm(key: str, state: State) -> bool:
    """Whether a key is the weight of a norm without running statistics; slopes of a PReLU look the same."""
    module, _, leaf = key.rpartition(".")
    return leaf == "weight" and state[key].dim() == 1 and f"{module}.running_mean" not in state


def _apart(tensor: torch.Tensor, block: int) -> torch.Tensor:
    """The columns of each unit under an index of its own: (out, units, block, ...)."""
    return tensor.reshape(len(tensor), -1, block, *tensor.shape[2:])
