"""Whether a signal goes through a model, or dies on the way, or explodes."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

_LOUD = 200.0
"""Activations as large as that leave nothing of what a nonlinearity does around 0."""
_FAINT = 0.002
"""Of pooled outputs, independent inputs change no more than some thousandths."""
_DEAD = 1e-9
_TRIES = 6
_SECONDS = 20.0
"""Of the processor; whatever else the machine does."""


@dataclass
class Signal:
    """The response of a model to a signal."""

    loudest: float = 0.0
    """The largest root mean square of what a module returned."""

    echo: float = math.inf
    """How much of the outputs changes with the inputs, in parts of the outputs."""

    @property
    def is_dead(self) -> bool:
        """Whether the outputs change with the inputs by no more than rounding."""
        return self.echo < _DEAD

    @property
    def quality(self) -> float:
        """1 for a signal that neither dies nor explodes, less for any other."""
        return min(1.0, self.echo / _FAINT) * (1.0 if self.loudest <= _LOUD else _LOUD / self.loudest)


@contextmanager
def heard(signal: Signal) -> Iterator[None]:
    """Note how loud the outputs of modules are."""

    def hear(module: nn.Module, given: Any, made: Any) -> None:
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, torch.Tensor) and each.is_floating_point() and each.numel():
                loud = float(torch.linalg.vector_norm(each.detach())) / math.sqrt(each.numel())
                signal.loudest = max(signal.loudest, math.inf if math.isnan(loud) else loud)

    hook = register_module_forward_hook(hear)
    try:
        yield
    finally:
        hook.remove()


def echo(outputs: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    """Return how far the outputs of two batches are apart, relative to them; infinite if none compares."""
    found = -math.inf
    for path, one in outputs.items():
        other = others.get(path)
        if other is not None and other.shape == one.shape and one.numel():
            apart = torch.where((one - other).isfinite(), one - other, 0.0)
            size = torch.linalg.vector_norm(torch.where(one.isfinite(), one, 0.0))
            found = max(found, float(torch.linalg.vector_norm(apart) / size.clamp_min(1e-300)))
    return found if found >= 0 else math.inf


def fitting(hear: Callable[[float], Signal]) -> float:
    """Return the gain of the variance of a model's weights that carries a signal through it best.

    `hear` returns what is heard with a gain. It is called for 1 alone if that is good, and not after 20 s.
    """
    found: dict[float, Signal] = {}
    gain, faint, loud = 1.0, 0.0, math.inf  # too faint up to, too loud from
    end = time.process_time() + _SECONDS
    while gain not in found and len(found) < _TRIES and time.process_time() < end:
        found[gain] = signal = hear(gain)
        if signal.loudest > _LOUD:
            loud = gain
        elif signal.echo < _FAINT:
            faint = gain
        else:
            break
        gain = loud / 4 if not faint else min(faint * 4, math.sqrt(faint * loud))
    return max(found, key=lambda each: found[each].quality)
