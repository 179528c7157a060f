"""Record what a model computes on synthetic values, and compare it later."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from .effects import Effects
from .reach import Elements, disturb, reach
from .recorded_outputs import Gap, Recorded, gap
from .regions import put_back, ways
from .run_copies import coarser
from .wide_run import Run, RunError, Trial, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .regions import Rows

MOST_SLACK = 1e6
"""Times the usual tolerance, above which nothing is compared."""

_MARGIN = 10.0
"""How much more than the last bits of half the weights the rounding of another machine may change."""

_NONE = Effects(precision=torch.float64)
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
    """Record a model's outputs (of the `first` run, if there was one), or why they can't be compared."""
    try:
        first = first or run(trial)
        random, slack = _unsteady(first, trial)
    except RunError as error:
        return Behaviour(uncompared=f"the model did not run: {error}")
    found, uncompared = _recorded(first), random
    if not first.outputs:
        uncompared = "the model gave no tensor"
    elif not found.outputs:
        uncompared = "the outputs were NaN"
    dead = "the outputs do not depend on the inputs" if first.signal.is_dead else ""
    return replace(found, note=first.note or dead, uncompared=uncompared, slack=slack)


def _recorded(first: Run) -> Behaviour:
    outputs = {path: Recorded.of(path, tensor) for path, tensor in first.outputs.items()}
    return Behaviour({path: each for path, each in outputs.items() if each is not None}, first.precision)


def _unsteady(first: Run, trial: Trial) -> tuple[str, float]:
    """Return why another run differs, or ``""``, and how many times the usual tolerance is needed.

    The other run is of a model constructed with another seed, in which the last bits of weights are changed.

    Raises:
        RunError: it did not run.
    """

    def load(model: nn.Module) -> None:
        trial.load(model)
        with torch.no_grad():
            for each in model.parameters():
                if each.dim() and each.is_floating_point():
                    each[..., ::2].mul_(1 + 4 * torch.finfo(each.dtype).eps)

    slack = _MARGIN * _times(first, run(replace(trial, load=load), 1, construction=1))
    if slack <= 1:
        return "", 1.0
    random = _random(first, trial)
    if not random and slack > MOST_SLACK:
        random = "the model amplifies the rounding errors of its arithmetic too much"
    return random, 1.0 if random else slack


def is_random(now: Run, trial: Trial) -> str:
    """Return why another run differs (two runs differ, two constructions differ), or ``""``."""
    try:
        return _random(now, trial)
    except RunError:
        return ""


def _random(first: Run, trial: Trial) -> str:
    def differs(construction: int) -> bool:
        return _times(first, run(trial, 1, construction=construction)) > 1

    if not differs(1):
        return ""
    return "two runs of the model differ" if differs(0) else "two constructions of the model differ"


def _times(first: Run, other: Run) -> float:
    """Return how many times the tolerance two runs are apart."""
    shapes, others = ({path: each.shape for path, each in one.outputs.items()} for one in (first, other))
    if shapes != others:
        return math.inf
    return max((each.times for each in compare(_recorded(first), other).gaps), default=0.0)


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
    effects: Effects = _NONE,
    reach: Mapping[str, torch.Tensor] | None = None,
) -> Comparison:
    """Compare a run on the same values and batch with recorded outputs, in the regions that existed then.

    Args:
        then: the recorded outputs.
        now: the run.
        effects: what a recipe did. If it touched nothing, an output with another shape has changed.
        reach: path -> True for elements of today's outputs that may differ.
    """
    precision = coarser(effects.precision, coarser(then.precision, now.precision))
    rows, gaps, alone, grown = effects.rows, [], [], False
    pairs = _pairs(then.outputs, now.outputs)
    for path, recorded in then.outputs.items():
        if path not in pairs:
            alone.append(f"output{path} {recorded.shape} is gone")
            continue
        tensor = now.outputs[pairs[path]]
        free = None if reach is None else reach[pairs[path]]
        fitting = list(ways(recorded.shape, tensor.shape, rows))
        found = [_gap(path, recorded, tensor, way, rows, precision, free) for way in fitting]
        if measured := [each for each in found if each is not None]:
            best = min(measured, key=lambda each: each.times)
            gaps.append(replace(best, times=best.times / then.slack))
            grown = grown or tensor.numel() > math.prod(recorded.shape)
        elif reach is None or not fitting:
            text = f"was {recorded.shape} and is {tuple(tensor.shape)}"
            if effects.touched:
                alone.append(f"output{path} {text}")
            else:
                gaps.append(Gap(path, math.inf, math.inf, recorded.rms, text))
    return Comparison(tuple(sorted(gaps, key=lambda each: -each.times)), tuple(alone), grown)


def _gap(
    path: str,
    then: Recorded,
    now: torch.Tensor,
    way: int | None,
    rows: Rows,
    precision: torch.dtype,
    reach: torch.Tensor | None,
) -> Gap | None:
    """Return the gap of one output in one of the `ways`; None if all recorded elements may differ."""
    old = put_back(way, now, torch.zeros(then.shape), rows)
    if way is None and reach is None:
        return gap(path, then, old, precision)
    free = torch.zeros(now.shape, dtype=torch.bool) if reach is None else reach
    return gap(
        path, then, old, precision, put_back(way, free, torch.ones(then.shape, dtype=torch.bool), rows)
    )


def reached(now: Run, trial: Trial, tensors: Mapping[str, Elements]) -> dict[str, torch.Tensor] | None:
    """Return `reach` in the outputs of a run of `trial`; None if everything may be in reach."""

    def again(seed: int) -> list[dict[str, torch.Tensor]]:
        def load(model: nn.Module) -> None:
            trial.load(model)
            disturb(model, tensors, seed)

        return [run(replace(trial, load=load)).outputs]

    try:
        return reach([now.outputs], again)[0]
    except RunError:  # the model's own loader keeps them under other names, say
        return None


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
