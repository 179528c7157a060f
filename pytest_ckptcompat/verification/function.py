"""Check "function kept": compare the old model on the old checkpoint with the new model on the new one."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.tensors.difference import magnitude
from pytest_ckptcompat.tensors.footprint import tensors, weights

from .pairing import Comparing, Gap, Pairing
from .reach import Elements, Reach, reach_of
from .run_copies import Arithmetic, Outputs, coarser, outputs, twin
from .source_model import SourceError, loaded
from .token_ids import Ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_ckptcompat.core.claim import Verdict

    from .regions import Rows
    from .wide_run import Batch

NAME = "function kept"
BATCHES = 3
_ANYTHING = 0.5  # with this tolerance, outputs could be nearly anything
_MARGIN = 1.5  # times the weights, for the rest that a forward pass holds


@dataclass(frozen=True)
class Said:
    """What the steps of a recipe claim about the function.

    Attributes:
        changes: why the function may change; empty if all steps claim to keep it.
        made: key -> the elements made by steps that don't claim to keep the function; what depends on them
            may differ.
        anywhere: whether keys alone can't tell these elements, so that everything may differ.
        lost: old key -> the step that dropped it, and claims that nothing depends on it.
        eval_only: whether the claim is only for eval mode.
    """

    changes: tuple[str, ...] = ()
    made: Mapping[str, Elements] = field(default_factory=dict)
    anywhere: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)
    eval_only: bool = False


def function_kept(
    source: Callable[[], nn.Module],
    old: Mapping[str, Any],
    model: nn.Module,
    batches: Callable[[int], Batch],
    *,
    precision: torch.dtype = torch.float32,
    rows: Rows | None = None,
    renamed: Mapping[str, str] | None = None,
    said: Said | None = None,
    method: str = "forward",
) -> Verdict:
    """Check whether two models agree on seeded batches, in the region of each output that existed before.

    Both run in eval mode and, if there is BatchNorm, also with BatchNorm in train mode. They run on copies,
    so `model` is not changed. They run in float64 on the CPU if that fits into memory, so that only the
    function matters and not the order of sums; otherwise in their own dtype and place. Outputs agree if no
    element differs by more than `tolerance` allows.

    Args:
        source: builds the model that the checkpoint was made for.
        old: the old checkpoint's state dict.
        model: the new model, loaded.
        batches: seed -> the arguments of ``forward``, the same for both models. Token ids beyond the old
            vocabulary are brought into it, since the old model has no function for them.
        precision: the coarsest dtype in which the recipe computed weights.
        rows: where rows went, for dimensions that were not simply extended at the end.
        renamed: old key -> new key, for renamed tensors.
        said: what the steps of the recipe claim. If left out, all claim to keep the function.
        method: the method to call in both models.

    Returns:
        The promise: ``changed``, with the size of the change, if outputs differ only where a step says they
        may; ``unchecked``, with the reason, if the two can't be compared. And findings: for outputs that
        differ elsewhere or were not compared, or for a ``source_model`` that does not load the old
        checkpoint.
    """
    room, needed = memory.free(), tensors(old.values())
    if room is not None and needed * _MARGIN > room:
        return _unchecked(f"the old model takes {memory.shown(needed)}, {memory.shown(room)} are free")
    reason = ""
    for arithmetic in _arithmetics(model, needed, room):
        try:
            before = loaded(source, old)
        except SourceError as error:
            found = finding("source-model-error", message=str(error))
            return Promise(NAME, "unchecked", error.reason), [found]
        try:
            ids = Ids.of(before, model, rows or {}, renamed or {}, batches(0))
            run = _Run(source, old, before, model, batches, arithmetic, ids, method)
            return run.compared(precision, rows or {}, said or Said())
        except (Exception, SystemExit) as error:
            reason = f"the forward pass raised {raised(error)}"
    return _unchecked("; ".join((*(said or Said()).changes, reason)))


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative tolerance of outputs; `dtype` is the coarsest dtype involved.

    It is relative to the output's largest value: 1e-9 in float64, 1e-5 in float32, and sixteen times the
    machine epsilon in coarser dtypes, since rounding adds up over layers.
    """
    eps = torch.finfo(dtype).eps
    return 1e-9 if eps <= torch.finfo(torch.float64).eps else max(1e-5, 16 * eps)


def _unchecked(reason: str) -> Verdict:
    return Promise(NAME, "unchecked", reason), [finding("function-uncompared", message=reason)]


def _arithmetics(model: nn.Module, needed: int, room: int | None) -> Iterator[Arithmetic]:
    """Yield float64 if a copy of either model fits into memory, then the models' own dtype."""
    wide = max(weights(model, itemsize=8), needed * 2)
    if room is None or wide * _MARGIN < room:
        yield Arithmetic(True, torch.device("cpu"))
    held = chain(model.parameters(), model.buffers())
    yield Arithmetic(False, next((tensor.device for tensor in held), torch.device("cpu")))


class _Run:
    """Both models, the batches, and the arithmetic."""

    def __init__(
        self,
        source: Callable[[], nn.Module],
        state: Mapping[str, Any],
        before: nn.Module,
        model: nn.Module,
        batches: Callable[[int], Batch],
        arithmetic: Arithmetic,
        ids: Ids,
        method: str,
    ) -> None:
        self._source, self._state, self._before, self._model = source, state, before, model
        self._pairs = [ids.pair(batches(seed)) for seed in range(BATCHES)]
        self._arithmetic, self._ids, self._method = arithmetic, ids, method
        self._precision = torch.float64

    def compared(self, precision: torch.dtype, rows: Rows, said: Said) -> Verdict:
        """Run both models, pair their outputs, and judge the differences by what the steps claim."""
        old, new = self._old(), self._new()
        if any(_not_finite(each) for batches_of in old.modes.values() for each in batches_of):
            return _unchecked("the old model's outputs are not finite")
        precision = coarser(precision, coarser(old.lowest, new.lowest))
        self._precision = precision
        if tolerance(precision) >= _ANYTHING:
            return _unchecked(f"{_name(precision)} is too coarse to tell")
        modes = [mode for mode in old.modes if mode in new.modes and not (said.eval_only and mode == "train")]
        comparing = Comparing(old, new, modes, rows, tolerance(precision))
        pairing = comparing.paired()
        if not pairing.chosen:
            alone = "no output of the new model can be paired with an old one"
            return _unchecked("; ".join((*said.changes, alone)))
        promise, findings = self._judged(comparing, pairing, said)
        if pairing.alone:
            listed = ", ".join(f"output{path}" for path in pairing.alone)
            message = f"{listed} of the old model can't be paired with one output of the new model"
            findings = [*findings, finding("function-uncompared", message=message)]
        return promise, findings

    def _judged(self, comparing: Comparing, pairing: Pairing, said: Said) -> Verdict:
        gaps = [gap for candidate in pairing.chosen.values() for gap in candidate.gaps]
        worst = max(gaps, key=lambda gap: gap.times)
        if worst.times <= 1:
            if fault := self._ids.left_behind(self._state, pairing, comparing.rows):
                return Promise(NAME, "broken", fault), [finding("function-changed", message=fault)]
            return Promise(NAME, "kept", self._kept(comparing, pairing, said)), []
        if comparing.old.random or comparing.new.random:
            return _unchecked("the forward pass draws random numbers")
        if self._ids.moved is not None:  # an integer input may not be a token id
            return _unchecked("words have other numbers now, and the inputs can't be told apart")
        if said.changes:
            beyond = comparing.outside(pairing, self._reach(comparing, said))
            if max(gap.times for gap in beyond) <= 1:
                return _changed(worst, said)
            worst = max(beyond, key=lambda gap: gap.times)
        return self._broken(worst, comparing.allowed, self._blamed(comparing.old, said))

    def _kept(self, comparing: Comparing, pairing: Pairing, said: Said) -> str:
        moved = [path for path, each in pairing.chosen.items() if each.way.moved is not None]
        others = {path: each.way.path for path, each in pairing.chosen.items() if each.way.path != path}
        coarse = comparing.allowed > tolerance(torch.float32)
        notes = [
            self._ids.note,
            f", up to {_name(self._precision)}'s rounding" if coarse else "",
            f", rows of {', '.join(f'output{path}' for path in moved)} where they are now" if moved else "",
            *(f", output{path} is now output{now}" for path, now in others.items()),
            f", without output{min(pairing.alone)}" if pairing.alone else "",
        ]
        most = max(gap.apart.size for each in pairing.chosen.values() for gap in each.gaps)
        eval_only = ", eval alone" if said.eval_only else _modes(comparing.old, comparing.modes)
        return f"max |Δ| {magnitude(most)} on {BATCHES} batches{eval_only}{''.join(notes)}"

    def _reach(self, comparing: Comparing, said: Said) -> Reach:
        """Find what depends on tensors made by steps that don't claim to keep the function."""
        if said.anywhere:
            return Reach(None)
        return reach_of(said.made, self._model, self._new, comparing.new)

    def _blamed(self, old: Outputs, said: Said) -> str:
        """Name the steps that dropped tensors on which the old outputs depend, for a finding's text."""
        guilty = []
        for step in dict.fromkeys(said.lost.values()):
            keys: dict[str, Elements] = {key: None for key, by in said.lost.items() if by == step}
            self._before = loaded(self._source, self._state)
            keys = {key: None for key in keys if key in self._before.state_dict()}
            if keys and reach_of(keys, self._before, lambda: self._old(copied=True), old).anywhere():
                guilty.append(step)
        return f"; {' and '.join(guilty)} left out what the old outputs depend on" if guilty else ""

    def _old(self, *, copied: bool = False) -> Outputs:
        """Return the old model's outputs. The model is used up, unless `copied`."""
        model = twin(self._before, self._arithmetic) if copied else self._before.to(self._arithmetic.device)
        if not copied:
            del self._before
            model = model.double() if self._arithmetic.wide else model
        return outputs(model, [pair[0] for pair in self._pairs], self._arithmetic, self._method)

    def _new(self) -> Outputs:
        model = twin(self._model, self._arithmetic)
        return outputs(model, [pair[1] for pair in self._pairs], self._arithmetic, self._method)

    def _broken(self, miss: Gap, allowed: float, blamed: str) -> Verdict:
        output = f"output{miss.path}"
        message = (
            f"the function is not kept: {output} differs, {miss.apart}; its largest old value is "
            f"{magnitude(miss.scale)}, allowed is {allowed:.0e} of it; {miss.mode} mode, batch {miss.batch}, "
            f"{self._arithmetic}{blamed}"
        )
        detail = f"{output}: {miss.apart}, {miss.mode} mode"
        return Promise(NAME, "broken", detail), [finding("function-changed", message=message)]


def _changed(worst: Gap, said: Said) -> Verdict:
    """Return the verdict if outputs differ only where a step says that they may."""
    why = "; ".join(said.changes)
    of = f"of {magnitude(worst.scale)}"
    return Promise(NAME, "changed", f"output{worst.path} differs, {worst.apart} {of}: {why}"), []


def _modes(old: Outputs, modes: list[str]) -> str:
    if "train" in modes:
        return ", eval and train"
    return ", eval alone" if old.batchnorm else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_finite(found: Mapping[str, torch.Tensor]) -> bool:
    return any(
        not bool(torch.isfinite(tensor).all()) for tensor in found.values() if tensor.is_floating_point()
    )
