"""Record what a model computes on synthetic values, and compare it later."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .reach import Elements, other_values
from .recorded_outputs import Gap, Recorded, gap, moved_gap
from .regions import corner
from .run_copies import coarser
from .steadiness import MOST_SLACK, unsteady
from .wide_run import Run, RunError, Trial, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .regions import Rows

_TRIES = 2
_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Behaviour:
    """The recorded outputs of a model for one batch.

    Attributes:
        outputs: path -> the record of that output.
        precision: the dtype in which the model ran.
        note: why not in float64, or that no signal goes through the model; or ``""``.
        uncompared: why later outputs can't be compared with these, or ``""``.
        slack: how many times the usual tolerance is needed, since the model amplifies rounding errors.
    """

    outputs: Mapping[str, Recorded] = field(default_factory=dict)
    precision: torch.dtype = torch.float64
    note: str = ""
    uncompared: str = ""
    slack: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without empty fields."""
        found: dict[str, Any] = {"precision": str(self.precision).removeprefix("torch.")}
        if self.note:
            found["note"] = self.note
        if self.uncompared:
            found["uncompared"] = self.uncompared
        if self.slack > 1:
            found["slack"] = self.slack
        return found | {"outputs": {path: each.to_json() for path, each in self.outputs.items()}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Behaviour:
        """Read the result of `to_json`.

        Raises:
            ValueError: `found` has another form.
        """
        outputs, precision = found.get("outputs"), _PRECISIONS.get(str(found.get("precision")))
        slack = found.get("slack", 1.0)
        known = isinstance(slack, (int, float)) and 1 <= slack <= MOST_SLACK
        if not isinstance(outputs, dict) or precision is None or not known:
            raise ValueError("outputs are not recorded as outputs are")
        return cls(
            {str(path): Recorded.from_json(row) for path, row in outputs.items()},
            precision,
            str(found.get("note", "")),
            str(found.get("uncompared", "")),
            float(slack),
        )


def record(trial: Trial, first: Run | None = None) -> Behaviour:
    """Run a model and record its outputs, or why they can't be compared: they are random, NaN or empty.

    Args:
        trial: the model.
        first: a run of it, where there was one.
    """
    try:
        first = first or run(trial)
        random, slack = unsteady(first, trial)
    except RunError as error:
        return Behaviour(uncompared=f"the model did not run: {error}")
    outputs = {path: Recorded.of(path, tensor) for path, tensor in first.outputs.items()}
    finite = {path: each for path, each in outputs.items() if each is not None}
    uncompared = random
    if not outputs:
        uncompared = "the model gave no tensor"
    elif not finite:
        uncompared = "the outputs were NaN"
    dead = "the outputs do not depend on the inputs" if first.signal.is_dead else ""
    return Behaviour(finite, first.precision, first.note or dead, uncompared, slack)


@dataclass(frozen=True)
class Comparison:
    """A comparison of present outputs with recorded ones.

    Attributes:
        gaps: one for each output that both have, largest first.
        alone: recorded outputs without a present counterpart, and why.
        grown: whether an output has grown, so that only its old region was compared.
    """

    gaps: tuple[Gap, ...]
    alone: tuple[str, ...]
    grown: bool

    @property
    def changed(self) -> bool:
        """Whether an output differs by more than rounding."""
        return any(each.times > 1 for each in self.gaps)


def compare(
    then: Behaviour,
    now: Run,
    rows: Rows | None = None,
    *,
    resized: bool = False,
    precision: torch.dtype = torch.float64,
    reach: Mapping[str, torch.Tensor] | None = None,
) -> Comparison:
    """Compare a model's outputs with recorded ones, in the region of each output that existed then.

    Args:
        then: the recorded outputs.
        now: a run on the same values and the same batch.
        rows: where rows went, for dimensions that were not simply extended at the end.
        resized: whether a recipe resized weights. If not, an output with another shape has changed.
        precision: the coarsest dtype in which weights were computed.
        reach: path -> True for elements of today's outputs that may differ.
    """
    precision = coarser(precision, coarser(then.precision, now.precision))
    gaps, alone, grown = [], [], False
    pairs = _pairs(then.outputs, now.outputs)
    for path, recorded in then.outputs.items():
        tensor = now.outputs.get(pairs.get(path, ""))
        if tensor is None or path not in pairs:
            alone.append(f"output{path} {recorded.shape} is gone")
            continue
        free = None if reach is None else reach.get(pairs[path])
        found, larger = _gap(path, recorded, tensor, rows or {}, precision, free)
        if found is None:
            text = f"was {recorded.shape} and is {tuple(tensor.shape)}"
            if resized:
                alone.append(f"output{path} {text}")
            else:
                gaps.append(Gap(path, math.inf, math.inf, recorded.rms, text))
        else:
            gaps.append(replace(found, times=found.times / then.slack))
            grown = grown or larger
    return Comparison(tuple(sorted(gaps, key=lambda each: -each.times)), tuple(alone), grown)


def reached(now: Run, trial: Trial, tensors: Mapping[str, Elements]) -> dict[str, torch.Tensor]:
    """Find the elements of a model's outputs that depend on some tensors: path -> True where they do.

    The tensors are disturbed and the model runs again. Elements with the same bits don't depend on them.

    Args:
        now: the undisturbed run.
        trial: what ran.
        tensors: key -> which of its elements to disturb; None for all.

    Raises:
        RunError: the model did not run.
    """
    found = {path: torch.zeros(tensor.shape, dtype=torch.bool) for path, tensor in now.outputs.items()}

    def disturb(model: nn.Module, seed: int) -> None:
        trial.load(model)
        held = model.state_dict(keep_vars=True)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, elements in tensors.items():
                other = other_values(held[key], generator)
                held[key].copy_(other if elements is None else torch.where(elements, other, held[key]))

    for seed in range(_TRIES):
        again = run(replace(trial, load=partial(disturb, seed=seed)))
        for path, mask in found.items():
            other = again.outputs.get(path)
            if other is None or other.shape != mask.shape:
                mask.fill_(True)
            else:
                mask |= other.ne(now.outputs[path])
    return found


def _pairs(then: Mapping[str, Recorded], now: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return old path -> new path: the same path or, if names changed, the only one of that shape."""
    pairs = {path: path for path in then if path in now}
    left = [path for path in now if path not in pairs]
    gone = [path for path in then if path not in pairs]
    for path in gone:
        shape = then[path].shape
        fitting = [other for other in left if tuple(now[other].shape) == shape]
        if len(fitting) == 1 and sum(then[other].shape == shape for other in gone) == 1:
            pairs[path] = fitting[0]
    return pairs


def _gap(
    path: str,
    then: Recorded,
    now: torch.Tensor,
    rows: Rows,
    precision: torch.dtype,
    reach: torch.Tensor | None,
) -> tuple[Gap | None, bool]:
    """Return the gap of one output, and whether the output has grown."""
    moved = moved_gap(path, then, now, rows, precision)
    region = now if tuple(now.shape) == then.shape else corner(torch.empty(then.shape, device="meta"), now)
    if region is None:
        return moved, False
    free = None if reach is None else corner(torch.empty(then.shape, device="meta"), reach)
    found = gap(path, then, region, precision, free)
    if moved is not None and moved.times < found.times:
        found = moved
    return found, math.prod(then.shape) != now.numel()
