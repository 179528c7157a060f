"""Whether a model gives the same again: how random it is, and how much it amplifies rounding errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .recorded_outputs import Recorded, gap
from .wide_run import Run, RunError, Trial, run

if TYPE_CHECKING:
    from torch import nn

MOST_SLACK = 1e6
"""Times the usual tolerance, above which nothing is compared."""

_MARGIN = 10.0
"""How much more than the last bits of half the weights the rounding of another machine may change."""


def unsteady(first: Run, trial: Trial) -> tuple[str, float]:
    """Return why another run differs, or ``""``, and how many times the usual tolerance is needed.

    The other run is of a model constructed with another seed, in which the last bits of weights are changed.

    Args:
        first: a run.
        trial: what ran.

    Raises:
        RunError: it did not run.
    """

    def disturb(model: nn.Module) -> None:
        trial.load(model)
        with torch.no_grad():
            for each in model.parameters():
                if each.dim() and each.is_floating_point():
                    each[..., ::2].mul_(1 + 4 * torch.finfo(each.dtype).eps)

    slack = _MARGIN * _times(first, run(replace(trial, load=disturb), 1, construction=1))
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


def _times(one: Run, other: Run) -> float:
    """Return how many times the tolerance the outputs of two runs are apart."""
    if one.outputs.keys() != other.outputs.keys():
        return math.inf
    return max((_apart(each, other.outputs[path], one) for path, each in one.outputs.items()), default=0.0)


def _apart(one: torch.Tensor, other: torch.Tensor, ran: Run) -> float:
    if one.shape != other.shape:
        return math.inf
    then = Recorded.of("", one)
    return 0.0 if then is None else gap("", then, other, ran.precision).times
