"""Behaviour on synthetic values: record it for a lock or at a past commit."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.limits import DEFAULT, Limits
from pytest_ckptcompat.models.skeleton import LARGE
from pytest_ckptcompat.tensors import plain, synthetic
from pytest_ckptcompat.tensors.nested import mapped, tensors
from pytest_ckptcompat.verification.behaviour import Behaviour, record
from pytest_ckptcompat.verification.signal import Signal, fitting
from pytest_ckptcompat.verification.wide_run import Run, RunError, Trial, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.models.blueprint import Blueprint

_COPIES = 3
"""Copies of the values in memory: as drawn, in the model, and in the forward pass."""


def recorded(
    blueprint: Blueprint,
    table: synthetic.Table,
    ties: Iterable[Sequence[str]],
    batch: Any,
    method: str = "forward",
    *,
    limits: Limits = DEFAULT,
    most: int = 64_000,
) -> dict[str, Any]:
    """Run a model on synthetic values of a table and return its outputs as plain values.

    Args:
        blueprint: builds the model that loads the table.
        table: key -> shape and dtype.
        ties: groups of keys that share a tensor.
        batch: the inputs, in the form of `plain.packed`.
        method: which method is called.
        limits: ``synthetic_bytes`` is the most that the values may take.
        most: the most characters to spend on the integers that the model constructs.

    Returns:
        `Behaviour.to_json`, with ``method``, the ``batch``'s digest, what was ``constructed`` (key -> bits of
        integers that are not all 0, None where there was no room), and the ``gain`` of the weights if not 1.
    """
    about: dict[str, Any] = {"method": method, "batch": plain.digest(batch)}
    if why := too_large(table, limits):
        return about | Behaviour(uncompared=why).to_json()
    kept: dict[str, Any] = {}

    drawn = synthetic.inputs(plain.unpacked(batch))
    large = 4 * sum(prod(spec.shape) for spec in table.values()) > LARGE

    def trial(gain: float) -> Trial:
        values: dict[str, Any] = {}

        def load(model: nn.Module) -> object:
            if not values:
                kept.update(kept or undrawn(model))
                values.update(synthetic.state_dict(table, ties, kept, gain))
            return model.load_state_dict(values)

        return Trial(blueprint.build, load, drawn, method, large)

    other = _other(drawn)
    gain, chosen, first = _heard(trial, other)
    found = record(chosen, first)
    if found.uncompared and gain != 1:  # a gain at which a dead signal lives may be one of chaos
        gain, plain_weights = 1.0, trial(1.0)
        found = record(plain_weights, run(plain_weights, other=other))
    constructed = {key: value for key, value in kept.items() if isinstance(value, torch.Tensor)}
    told = {} if gain == 1 else {"gain": gain}
    return about | told | {"constructed": _bits(constructed, most)} | found.to_json()


def _heard(trial: Callable[[float], Trial], other: Any) -> tuple[float, Trial, Run | None]:
    """Return the gain that carries a signal through best, the trial with it, and its run if kept."""
    last: tuple[float, Trial, Run]

    def hear(gain: float) -> Signal:
        nonlocal last
        tried = trial(gain)
        last = gain, tried, run(tried, other=other)
        return last[2].signal

    try:
        if (gain := fitting(hear)) != last[0]:
            hear(gain)
    except RunError:
        return 1.0, trial(1.0), None
    return last


def _other(batch: Any) -> Any:
    """Another batch: floats are drawn anew, integers mirrored below their largest; None if it is the same."""

    def mirrored(tensor: torch.Tensor) -> torch.Tensor:
        fixed = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        return tensor if fixed or not tensor.numel() else tensor.max() - tensor

    other = mapped(synthetic.inputs(batch, "other"), mirrored)
    pairs = zip(tensors(batch), tensors(other), strict=True)
    return other if any(not torch.equal(one, two) for (_, one), (_, two) in pairs) else None


def undrawn(model: nn.Module) -> dict[str, Any]:
    """Return entries that `synthetic.state_dict` does not draw: integers, booleans, objects."""
    return {
        key: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for key, value in model.state_dict(keep_vars=True).items()
        if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex())
    }


def too_large(table: synthetic.Table, limits: Limits) -> str:
    """Return why the values of a table can't be drawn here, or ``""``."""
    nbytes = 8 * sum(prod(spec.shape) for spec in table.values())
    if nbytes > limits.synthetic_bytes:
        return (
            f"its values take {memory.shown(nbytes)} in float64, the limit is "
            f"{memory.shown(limits.synthetic_bytes)} (ckpt_limits: synthetic_bytes)"
        )
    free = memory.free()
    if free is not None and nbytes * _COPIES > free:
        return f"its values take {memory.shown(nbytes)} in float64, and {memory.shown(free)} are free"
    return ""


def _bits(constructed: Mapping[str, torch.Tensor], most: int) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for key, value in constructed.items():
        if not bool(value.any()):
            continue
        text = plain.encoded(value)
        most -= len(text)
        found[key] = text if most >= 0 else None
    return found
