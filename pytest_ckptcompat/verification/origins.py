"""Trace the tensors of a loaded model to a checkpoint, by their bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import beside
from pytest_ckptcompat.tensors.deferred import DeferredTensor, materialise
from pytest_ckptcompat.tensors.difference import memory

from .counterparts import Counterparts
from .lines import Lines
from .same_values import How, Samples, constant, held_values, without_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .computed import Computed
    from .lines import Cut

BY_LINES = "line by line"
"""The `how` of values that are not one whole tensor of the checkpoint, or are in another order there."""

_PAGES = 1 << 20  # bytes above which allocating memory takes noticeable time
_SMALL = 1 << 20  # the most elements of an unused tensor that is tested for being a constant


class Origin(NamedTuple):
    """The checkpoint's keys that a model's tensor has its values from, and how they were changed."""

    sources: tuple[str, ...]
    how: str = ""


@dataclass
class Origins:
    """The result of `trace`. Every tensor of the model is in one of the first four.

    Attributes:
        held: key -> the origin of its values.
        other: keys that the checkpoint also has, but with other values -> what they hold, as far as known.
        missed: keys that the checkpoint lacks, and whose values it lacks -> what else is known about them, as
            text that is safe to print.
        constants: key -> its constant (``"zeros"``), which any constructor might give, so it is no evidence.
        unused: keys of the checkpoint whose values are nowhere in the model, except constants.
        evidence: the keys of `held` whose values are not constants.
    """

    held: dict[str, Origin] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    evidence: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """How many tensors the model has."""
        return len(self.held) + len(self.other) + len(self.missed) + len(self.constants)


def trace(
    model: Mapping[str, Any], checkpoint: Mapping[str, Any], computed: Computed | None = None
) -> Origins:
    """Trace every tensor of a loaded model to the checkpoint that it was loaded from.

    A key that both have is compared under its own name only. Any other key's values are searched for
    everywhere: unchanged, cast (also through a dtype that rounds), reshaped, with permuted axes, or line by
    line if tensors were fused, split, stacked or reordered. Keys that a recipe `computed` must hold its exact
    values, or equivalent ones. Every tensor of the checkpoint is read once, and a second time if only its
    lines can tell.
    """
    return _Tracing(model, checkpoint, computed).run()


class _Tracing:
    def __init__(
        self, model: Mapping[str, Any], checkpoint: Mapping[str, Any], computed: Computed | None
    ) -> None:
        tensors = _tensors(model)
        self._empty = {key: why for key, each in tensors.items() if (why := without_values(each))}
        self._model = {key: each for key, each in tensors.items() if key not in self._empty}
        self._checkpoint = _tensors(checkpoint)
        self._computed = computed
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used: set[object] = set()
        self._found = Origins()
        self._turned: dict[str, tuple[str, bool]] = {}
        self._straight: set[int] = set()

    def run(self) -> Origins:
        found = self._found
        found.missed = dict(self._empty)
        nameless = {key: each for key, each in self._model.items() if key not in self._checkpoint}
        found.constants = {key: what for key, each in nameless.items() if (what := constant(each))}
        wanted = {key: each for key, each in nameless.items() if key not in found.constants}
        self._whole(Samples(wanted))
        self._aliases(wanted)
        self._by_lines(wanted)
        found.missed |= {key: found.missed.get(key, "") for key in wanted if key not in found.held}
        self._constants()
        self._turned_for_nothing()
        self._swapped()
        self._elsewhere()
        found.evidence = {key for key in found.held if not constant(self._model[key])}
        found.unused = [key for key, each in self._checkpoint.items() if self._reached_nothing(each)]
        return found

    def _read(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the values, which are valid until the next call: allocating memory takes noticeable time."""
        nbytes = stored.numel() * stored.element_size()
        if not isinstance(stored, DeferredTensor) or nbytes < _PAGES:
            return materialise(stored)
        if self._memory.numel() < nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # not both at once
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(stored.dtype).view(stored.shape).copy_(stored)

    def _whole(self, samples: Samples) -> None:
        """Look for whole tensors; a name that both sides have is compared under that name only."""
        for key, stored in self._checkpoint.items():
            own = self._model.get(key)
            if own is None and stored.numel() not in samples.sizes:
                continue
            value = self._read(stored)
            if own is not None:
                self._own(key, own, value)
            for name, how in samples.alike(value):
                self._hold(name, key, how)

    def _own(self, key: str, own: torch.Tensor, value: torch.Tensor) -> None:
        """Compare tensors of one name: whole, then line by line, fewer or in another order.

        A tensor that a recipe computed must have all values in their order.
        """
        computed = self._computed if self._computed is not None and key in self._computed else None
        how: How | str | None = held_values(own, value)
        if computed is not None and (not isinstance(how, How) or how.turned):
            how = computed.how(key, own, value)
        if how is not None:
            self._hold(key, key, how)
            return
        lines = Lines({key: own})
        if lines.fits(value) and lines.look_in(key, value, thoroughly=False):
            self._used.add(memory(self._checkpoint[key]))
        cuts = list(lines.found())
        if computed is None and any(cut.is_complete for cut in cuts):
            self._hold(key, key, BY_LINES)
        elif not cuts:
            self._found.other[key] = _as_made(own)
        elif bool(cuts[0].found.all()):
            self._found.other[key] = "the lines are the checkpoint's, in another order"
        else:
            self._found.other[key] = f"{_counted(cuts[0])} lines are the checkpoint's"

    def _hold(self, name: str, key: str, how: How | str) -> None:
        stored = self._checkpoint[key]
        self._used.add(memory(stored))
        if isinstance(how, How):
            fits_either_way = name == key and self._model[name].shape == stored.shape
            if how.turned:
                self._turned[name] = how.turned, fits_either_way
            elif fits_either_way and not constant(self._model[name]):
                self._straight.add(stored.dim())
        self._found.held.setdefault(name, Origin((key,), str(how)))

    def _turned_for_nothing(self) -> None:
        """Reject squares that were transposed without need: they fit either way, so other tensors decide."""
        needed = {turned for turned, fits_either_way in self._turned.values() if not fits_either_way}
        for name, (turned, fits_either_way) in self._turned.items():
            if fits_either_way and turned not in needed and self._model[name].dim() in self._straight:
                del self._found.held[name]
                self._found.other[name] = f"the checkpoint's values {turned}"

    def _aliases(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Add the other names in the model of tensors that were found."""
        places = {memory(self._model[name]): origin for name, origin in self._found.held.items()}
        for name, tensor in wanted.items():
            if name not in self._found.held and (origin := places.get(memory(tensor))) is not None:
                self._found.held[name] = origin

    def _by_lines(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Look for lines of tensors not found whole: first in tensors that are not used yet, then in all."""
        left = {name: each for name, each in wanted.items() if name not in self._found.held}
        lines = Lines(left)
        for thoroughly in (False, True):
            if left.keys() <= self._found.held.keys():
                return
            for key, stored in self._checkpoint.items():
                place = memory(stored)
                if (
                    (thoroughly or place not in self._used)
                    and lines.fits(stored)
                    and lines.look_in(key, self._read(stored), thoroughly=thoroughly)
                ):
                    self._used.add(place)
            for cut in lines.found():
                if cut.is_complete:
                    self._found.held.setdefault(cut.name, Origin(tuple(cut.sources), BY_LINES))
        for cut in (each for each in lines.found() if each.name not in self._found.held):
            source = _named(cut.name, cut.sources[0])
            self._found.missed[cut.name] = f"{_counted(cut)} lines are in {source}, the others nowhere"

    def _constants(self) -> None:
        """Compare constants with the checkpoint's tensors under the corresponding names."""
        counterparts = self._counterparts()
        for name, what in list(self._found.constants.items()):
            key = counterparts.of(name)
            if key is None or key in self._model:
                continue
            value = self._read(self._checkpoint[key])
            how = held_values(self._model[name], value)
            if how is not None:
                del self._found.constants[name]
                self._hold(name, key, how)
            elif value.numel() == self._model[name].numel():
                del self._found.constants[name]
                self._found.missed[name] = f"{what}; the checkpoint has {_named(name, key)}"

    def _swapped(self) -> None:
        """Find tensors that were swapped, such as q and k, if all names were changed."""
        whole, counterparts = self._single_sources(), self._counterparts()
        wanted = {
            name: due
            for name, key in whole.items()
            if name not in self._checkpoint and (due := counterparts.of(name, but=key)) not in (None, key)
        }
        holder = {key: name for name, key in whole.items()}
        for name in wanted:
            there, seen = name, set[str]()
            while there in wanted and there not in seen:
                seen.add(there)
                there = holder.get(str(wanted[there]), "")
            if there == name and not self._holds(name, str(wanted[name])):
                self._found.other[name] = (
                    f"holds {_named(name, whole[name])}, not {_named(name, str(wanted[name]))}"
                )
        for name in self._found.other:
            self._found.held.pop(name, None)

    def _holds(self, name: str, key: str) -> bool:
        return held_values(self._model[name], self._read(self._checkpoint[key])) is not None

    def _elsewhere(self) -> None:
        """Find where keys with other values than their own have those from."""
        samples = Samples({name: self._model[name] for name, told in self._found.other.items() if not told})
        for key, stored in self._checkpoint.items():
            if stored.numel() in samples.sizes:
                for name, _ in samples.alike(self._read(stored)):
                    self._found.other[name] = f"holds {_named(name, key)}"

    def _reached_nothing(self, stored: torch.Tensor) -> bool:
        return memory(stored) not in self._used and not (
            stored.numel() <= _SMALL and constant(self._read(stored))
        )

    def _counterparts(self) -> Counterparts:
        return Counterparts(self._single_sources(), self._checkpoint.keys())

    def _single_sources(self) -> dict[str, str]:
        return {name: each.sources[0] for name, each in self._found.held.items() if len(each.sources) == 1}


def _as_made(tensor: torch.Tensor) -> str:
    """Return the constant that a tensor is, in words; but not a single number, which may be trained."""
    what = constant(tensor)
    return what if tensor.numel() > 1 or what in ("zeros", "ones") else ""


def _counted(cut: Cut) -> str:
    return f"{int(cut.found.sum())} of {len(cut.found)}"


def _named(name: str, key: str) -> str:
    return escape(beside(name, key), 120)


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
