"""Check "function kept": compare the old model on the old checkpoint with the new model on the new one."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.tensors.difference import magnitude
from pytest_ckptcompat.tensors.footprint import tensors, weights

from .effects import Effects
from .pairing import Gap, Pairing
from .reach import disturb, reach
from .run_copies import Arithmetic, Batches, Outputs, coarser, outputs, twin
from .source_model import SourceError, loaded
from .token_ids import Ids
from .wide_run import wider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_ckptcompat.core.claim import Verdict

    from .reach import Elements
    from .wide_run import Batch

NAME = "function kept"
BATCHES = 3
_ANYTHING = 0.5  # with this tolerance, outputs could be nearly anything
_MARGIN = 1.5  # times the weights, for the rest that a forward pass holds


def function_kept(
    source: Callable[[], nn.Module],
    old: Mapping[str, Any],
    model: nn.Module,
    batches: Callable[[int], Batch],
    effects: Effects | None = None,
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
        batches: seed -> the arguments of the call, the same for both models. Token ids beyond the old
            vocabulary are brought into it, since the old model has no function for them.
        effects: what the recipe did; by default, it keeps the function.
        method: the method to call in both models.

    Returns:
        The promise: ``changed``, with the size of the change, if outputs differ only where a step says they
        may; ``unchecked``, with the reason, if the two can't be compared. And findings: for outputs that
        differ elsewhere or were not compared, or for a ``source_model`` that does not load the old
        checkpoint.
    """
    effects = effects or Effects()
    room, needed = memory.free(), tensors(old.values())
    if room is not None and needed * _MARGIN > room:
        return _unchecked(f"the old model takes {memory.shown(needed)}, {memory.shown(room)} are free")
    reason = ""
    for arithmetic in _arithmetics(model, needed, room):
        try:
            return _Run(source, old, model, batches, effects, method, arithmetic).compared()
        except SourceError as error:
            found = finding("source-model-error", message=str(error))
            return Promise(NAME, "unchecked", error.reason), [found]
        except (Exception, SystemExit) as error:
            reason = f"the forward pass raised {raised(error)}"
    return _unchecked("; ".join((*effects.changes, reason)))


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
        yield Arithmetic(torch.float64, torch.device("cpu"))
    held = chain(model.parameters(), model.buffers())
    yield Arithmetic(None, next((tensor.device for tensor in held), torch.device("cpu")))


class _Run:
    """Both models, the batches, and the arithmetic."""

    def __init__(
        self,
        source: Callable[[], nn.Module],
        state: Mapping[str, Any],
        model: nn.Module,
        batches: Callable[[int], Batch],
        effects: Effects,
        method: str,
        arithmetic: Arithmetic,
    ) -> None:
        self._source, self._state, self._model, self._effects = source, state, model, effects
        self._method, self._arithmetic = method, arithmetic
        self._before = loaded(source, state)
        self._ids = Ids.of(self._before, model, effects.rows, effects.renamed, batches(0))
        pairs = [self._ids.pair(batches(seed)) for seed in range(BATCHES)]
        self._old_batches, self._new_batches = zip(*pairs, strict=True)

    def compared(self) -> Verdict:
        """Run both models, pair their outputs, and judge the differences by what the steps claim."""
        old = self._old()
        new = self._outputs(twin(self._model, self._arithmetic), self._new_batches)
        if not all(map(_finite, old.batches.values())):
            return _unchecked("the old model's outputs are not finite")
        precision = coarser(self._effects.precision, coarser(old.lowest, new.lowest))
        allowed = tolerance(precision)
        if allowed >= _ANYTHING:
            return _unchecked(f"{_name(precision)} is too coarse to compare outputs")
        before = {
            run: each
            for run, each in old.batches.items()
            if run in new.batches and not (self._effects.eval_only and run[0] == "train")
        }
        new = replace(new, batches={run: new.batches[run] for run in before})
        pairing = Pairing(before, new.batches, self._effects.rows, allowed)
        if not pairing.chosen:
            alone = "no output of the new model can be paired with an old one"
            return _unchecked("; ".join((*self._effects.changes, alone)))
        worst = max(pairing.gaps, key=lambda gap: gap.times)
        if worst.times > 1:
            promise, findings = self._differing(worst, pairing, old, new, allowed)
        elif fault := self._ids.left_behind(self._state, pairing):
            promise, findings = _broken(fault, fault)
        else:
            coarse = f", up to {_name(precision)}'s rounding" if allowed > tolerance(torch.float32) else ""
            promise, findings = Promise(NAME, "kept", self._kept(pairing, old.batchnorm, coarse)), []
        if pairing.alone:
            listed = ", ".join(f"output{path}" for path in pairing.alone)
            message = f"{listed} of the old model can't be paired with one output of the new model"
            findings = [*findings, finding("function-uncompared", message=message)]
        return promise, findings

    def _differing(self, worst: Gap, pairing: Pairing, old: Outputs, new: Outputs, allowed: float) -> Verdict:
        if old.random or new.random:
            return _unchecked("the forward pass draws random numbers")
        if self._ids.renumbered:  # an integer input may not be a token id
            return _unchecked(
                "a vocabulary was renumbered, and which inputs are token ids can't be determined"
            )
        if changes := self._effects.changes:
            within = None
            if not self._effects.anywhere:
                within = self._reach(self._effects.made, self._model, self._new_batches, new.batches)
            beyond = [] if within is None else pairing.outside(within)
            if all(gap.times <= 1 for gap in beyond):
                size = f"{worst.apart} of {magnitude(worst.scale)}"
                why = "; ".join(changes)
                return Promise(NAME, "changed", f"output{worst.path} differs, {size}: {why}"), []
            worst = max(beyond, key=lambda gap: gap.times)
        output = f"output{worst.path}"
        return _broken(
            f"{output}: {worst.apart}, {worst.mode} mode",
            f"the function is not kept: {output} differs, {worst.apart}; its largest old value is "
            f"{magnitude(worst.scale)}, allowed is {allowed:.0e} of it; {worst.mode} mode, "
            f"batch {worst.batch}, {self._arithmetic}{self._blamed(old)}",
        )

    def _kept(self, pairing: Pairing, batchnorm: bool, coarse: str) -> str:
        ways = {path: each.way for path, each in pairing.chosen.items()}
        moved = ", ".join(f"output{path}" for path, way in ways.items() if way.moved is not None)
        trained = any(gap.mode == "train" for gap in pairing.gaps)
        notes = [
            ", eval and train" if trained else ", eval only" if batchnorm or self._effects.eval_only else "",
            self._ids.note,
            coarse,
            f", moved rows of {moved}" if moved else "",
            *(f", output{path} is now output{way.path}" for path, way in ways.items() if way.path != path),
            f", without output{min(pairing.alone)}" if pairing.alone else "",
        ]
        most = max(gap.apart.size for gap in pairing.gaps)
        return f"max |Δ| {magnitude(most)} on {BATCHES} batches{''.join(notes)}"

    def _blamed(self, old: Outputs) -> str:
        """Name the steps that dropped tensors on which the old outputs depend, for a finding's text."""
        guilty = []
        for step in dict.fromkeys(self._effects.lost.values()):
            before = loaded(self._source, self._state)
            held = before.state_dict()
            keys = {key: None for key, by in self._effects.lost.items() if by == step and key in held}
            within = self._reach(keys, before, self._old_batches, old.batches)
            if within is None or any(bool(mask.any()) for each in within for mask in each.values()):
                guilty.append(step)
        return f"; {' and '.join(guilty)} dropped what the old outputs depend on" if guilty else ""

    def _old(self) -> Outputs:
        """Return the old model's outputs; the model is used up."""
        device, dtype = self._arithmetic.device, self._arithmetic.dtype
        model = self._before._apply(lambda tensor: tensor.to(device, wider(tensor.dtype, dtype)))  # type: ignore[no-untyped-call]
        del self._before
        return self._outputs(model, self._old_batches)

    def _outputs(self, model: nn.Module, batches: Sequence[Batch]) -> Outputs:
        return outputs(model, batches, self._arithmetic, self._method)

    def _reach(
        self, tensors: Mapping[str, Elements], model: nn.Module, batches: Sequence[Batch], given: Batches
    ) -> list[dict[str, torch.Tensor]] | None:
        """Return what some tensors of a model reach in its `given` outputs; None if that may be everything.

        The tensors are restored afterwards.
        """
        held = model.state_dict(keep_vars=True)
        if any(key not in held or not held[key].is_floating_point() for key in tensors):
            return None
        kept = {key: held[key].detach().clone() for key in tensors}

        def again(seed: int) -> list[dict[str, torch.Tensor]]:
            try:
                disturb(model, tensors, seed)
                found = self._outputs(twin(model, self._arithmetic), batches).batches
                return [found[run] for run in given]
            finally:
                with torch.no_grad():
                    for key, was in kept.items():
                        held[key].copy_(was)

        return reach(list(given.values()), again)


def _broken(detail: str, message: str) -> Verdict:
    return Promise(NAME, "broken", detail), [finding("function-changed", message=message)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _finite(found: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(each.isfinite().all()) for each in found.values() if each.is_floating_point())
