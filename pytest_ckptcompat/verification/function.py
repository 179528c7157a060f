"""Function kept: the old model on the old checkpoint against the new model on the new one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.tensors.difference import Difference, difference, magnitude
from pytest_ckptcompat.tensors.footprint import tensors, weights

from .regions import Rows, pairings
from .run_copies import Arithmetic, Batch, Outputs, coarser, outputs, twin
from .source_model import SourceError, loaded
from .token_ids import Ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NAME = "function kept"
BATCHES = 3
_ANYTHING = 0.5  # as a tolerance: outputs could nearly be anything
_MARGIN = 1.5  # of the weights, for what a forward pass holds besides them

Verdict = tuple[Promise, list[Finding]]


def function_kept(
    source: Callable[[], nn.Module],
    old: Mapping[str, Any],
    model: nn.Module,
    batches: Callable[[int], Batch],
    *,
    precision: torch.dtype = torch.float32,
    rows: Rows | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Verdict:
    """Whether two models agree on seeded batches, in the region of each output that existed before.

    Both run in eval mode and, where there is BatchNorm, once more with it in train mode, on copies: `model`
    is left as it was. They run in float64 on the CPU where that fits into memory, so that what differs is the
    function and not the order of a sum; else as they are. Outputs agree if no element is further off than
    `tolerance` allows.

    Args:
        source: builds the model that the checkpoint was made for.
        old: the old checkpoint's state dict.
        model: the new model, loaded.
        batches: seed -> the arguments of ``forward``, the same for both models. Token ids beyond a vocabulary
            that grew are brought into the old one, since there was no function to keep.
        precision: the coarsest dtype in which the recipe computed weights.
        rows: where the rows of a dimension went that was not simply extended at its end.
        renamed: old key -> new key, of tensors that have another name now.

    Returns:
        The promise (``unchecked``, with the reason, where the two can't be compared), and its finding where
        it is broken or where ``source_model`` does not load the old checkpoint.
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
            return _compared(before, model, batches, arithmetic, precision, rows or {}, ids)
        except (Exception, SystemExit) as error:
            reason = f"the forward pass raised {raised(error)}"
    return _unchecked(reason)


def tolerance(dtype: torch.dtype) -> float:
    """How far off an output may be, in parts of its largest value; `dtype` is the coarsest that took part.

    1e-9 in float64 and 1e-5 in float32; sixteen times the spacing of the numbers in anything coarser, which
    adds up over layers.
    """
    eps = torch.finfo(dtype).eps
    return 1e-9 if eps <= torch.finfo(torch.float64).eps else max(1e-5, 16 * eps)


def _unchecked(reason: str) -> Verdict:
    return Promise(NAME, "unchecked", reason), []


def _arithmetics(model: nn.Module, needed: int, room: int | None) -> Iterator[Arithmetic]:
    """float64 if a copy of either model fits into memory (there is one at a time), then the models' own."""
    wide = max(weights(model, itemsize=8), needed * 2)
    if room is None or wide * _MARGIN < room:
        yield Arithmetic(True, torch.device("cpu"))
    held = chain(model.parameters(), model.buffers())
    yield Arithmetic(False, next((tensor.device for tensor in held), torch.device("cpu")))


def _compared(
    before: nn.Module,
    model: nn.Module,
    batches: Callable[[int], Batch],
    arithmetic: Arithmetic,
    precision: torch.dtype,
    rows: Rows,
    ids: Ids,
) -> Verdict:
    pairs = [ids.pair(batches(seed)) for seed in range(BATCHES)]
    before = before.to(arithmetic.device)
    if arithmetic.wide:
        before = before.double()  # in place: it is ours
    old = outputs(before, [pair[0] for pair in pairs], arithmetic)
    del before
    if any(_not_finite(each) for batches_of in old.modes.values() for each in batches_of):
        return _unchecked("the old model's outputs are not finite")
    new = outputs(twin(model, arithmetic), [pair[1] for pair in pairs], arithmetic)
    precision = coarser(precision, coarser(old.lowest, new.lowest))
    if tolerance(precision) >= _ANYTHING:
        return _unchecked(f"{_name(precision)} is too coarse to tell")
    promise, findings = _verdict(old, new, precision, rows, arithmetic, ids.note)
    if findings and ids.moved is not None:  # not every integer is the number of a word
        return _unchecked("words have other numbers now, and the inputs can't be told apart")
    return promise, findings


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _not_finite(found: Mapping[str, torch.Tensor]) -> bool:
    return any(
        not bool(torch.isfinite(tensor).all()) for tensor in found.values() if tensor.is_floating_point()
    )


@dataclass(frozen=True)
class _Gap:
    """How far off an output is, and how many times as far as is allowed."""

    times: float
    apart: Difference
    scale: float
    path: str
    batch: int
    mode: str


def _verdict(
    old: Outputs, new: Outputs, precision: torch.dtype, rows: Rows, arithmetic: Arithmetic, note: str
) -> Verdict:
    allowed = tolerance(precision)
    modes = [mode for mode in old.modes if mode in new.modes]
    ways: dict[str, defaultdict[int, list[_Gap]]] = {}
    for mode in modes:
        for batch, (before, after) in enumerate(zip(old.modes[mode], new.modes[mode], strict=True)):
            for path, expected in before.items():
                found = ways.setdefault(path, defaultdict(list))
                for way, place in enumerate(_paired(path, expected, after, rows)):
                    # Statistics of a small batch amplify rounding.
                    apart = _apart(*place, allowed * (10 if mode == "train" else 1))
                    found[way].append(_Gap(*apart, path, batch, mode))
    alone = [path for path, found in ways.items() if not found]
    if len(alone) == len(ways):
        return _unchecked("no output of the new model can be paired with an old one")
    # An output lies where it did, or else where its rows have moved to: in all batches the same way.
    chosen = {path: min(found, key=lambda way: _worst(found[way])) for path, found in ways.items() if found}
    gaps = [gap for path, way in chosen.items() for gap in ways[path][way]]
    if _worst(gaps) > 1:
        if old.random or new.random:
            return _unchecked("the forward pass draws random numbers")
        return _broken(max(gaps, key=lambda gap: gap.times), allowed, arithmetic)
    moved = [path for path, way in chosen.items() if way]
    notes = [
        note,
        f", up to {_name(precision)}'s rounding" if allowed > tolerance(torch.float32) else "",
        f", rows of {', '.join(f'output{path}' for path in moved)} where they are now" if moved else "",
        f", without output{min(alone)}" if alone else "",
    ]
    most = max(gap.apart.size for gap in gaps)
    batches = f"on {BATCHES} batches{_modes(old, modes)}"
    return Promise(NAME, "kept", f"max |Δ| {magnitude(most)} {batches}{''.join(notes)}"), []


def _worst(gaps: list[_Gap]) -> float:
    return max(gap.times for gap in gaps)


def _paired(
    path: str, expected: torch.Tensor, after: Mapping[str, torch.Tensor], rows: Rows
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Where an old output may be in the new ones."""
    if path not in after or expected.numel() == 0:
        return []
    return list(pairings(expected, after[path], rows))


def _apart(expected: torch.Tensor, actual: torch.Tensor, allowed: float) -> tuple[float, Difference, float]:
    """By how many times the allowed difference two outputs differ, their difference, their largest value."""
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    apart = difference(expected, actual, 0.0) or Difference(0.0)
    # An output of zeros alone still has the rounding of what went into it.
    return apart.size / (allowed * max(scale, 1e-3)), apart, scale


def _modes(old: Outputs, modes: list[str]) -> str:
    if "train" in modes:
        return ", eval and train"
    return ", eval alone" if old.batchnorm else ""


def _broken(miss: _Gap, allowed: float, arithmetic: Arithmetic) -> Verdict:
    output = f"output{miss.path}"
    message = (
        f"the function is not kept: {output} differs, {miss.apart}; its largest old value is "
        f"{magnitude(miss.scale)}, allowed is {allowed:.0e} of it; {miss.mode} mode, batch {miss.batch}, "
        f"{arithmetic}"
    )
    detail = f"{output}: {miss.apart}, {miss.mode} mode"
    return Promise(NAME, "broken", detail), [finding("recipe-broken-promise", message=message)]
