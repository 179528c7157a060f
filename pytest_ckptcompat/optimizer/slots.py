"""The state that optimizers keep for a parameter, and how each part follows the weights.

A part is known if its name says what it is, or if the meaning does not matter: a gradient, its square and a
weight would all be carried in the same way. Unknown parts are left out, never copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.objects import withheld
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_ckptcompat.recipes.plan import Write

    Shape = tuple[int, ...]

GRADIENTS = frozenset({
    "exp_avg", "momentum_buffer", "grad_avg", "exp_inf", "prev",
    "exp_avg_diff", "neg_pre_grad", "previous_grad",
})  # fmt: skip
"""Averages or magnitudes of gradients: halved if the gradient is halved."""

SQUARES = frozenset({
    "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_avg_var", "max_exp_avg_var", "variance",
})  # fmt: skip
"""Averages and sums of squared gradients: quartered if the gradient is halved."""

WEIGHTS = frozenset({"ax"})
"""Averages of the weights themselves, which change like the weights."""

FREE = frozenset({"step_size", "acc_delta"})
"""Sizes of updates, which don't scale with gradients."""

ELEMENTWISE = GRADIENTS | SQUARES | WEIGHTS | FREE
"""Slots with a value for every element of a parameter, in its shape."""

NONNEGATIVE = SQUARES | FREE | {"exp_inf", "step"}
"""Slots that can't be negative; most are under a root."""


def is_elementwise(slot: str, value: Any, shape: Shape) -> bool:
    """Return whether a slot has an entry for each element of a parameter of this shape."""
    return slot != "step" and hasattr(value, "shape") and tuple(value.shape) == shape


def is_single(value: Any) -> bool:
    """Return whether a value is one number or word, such as a step count, which stays as it is."""
    if hasattr(value, "shape"):
        return all(size == 1 for size in value.shape)
    return isinstance(value, (bool, int, float, str, type(None)))


def unknown_form(slots: Mapping[str, Any], shape: Shape) -> str:
    """Return the first slot that is neither single nor of the parameter's shape, or ``""``."""
    known = {slot for slot, value in slots.items() if is_single(value) or is_elementwise(slot, value, shape)}
    return next((slot for slot in slots if slot not in known), "")


def unread_part(slots: Mapping[str, Any]) -> str:
    """Return which part of a parameter's state was not read and why, or ``""``."""
    found = ((slot, withheld(value)) for slot, value in slots.items() if not isinstance(value, torch.Tensor))
    return next((f"{escape(str(slot), 60)} was not read: {why}" for slot, why in found if why), "")


def carried(slot: str, write: Write, values: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Carry one slot of a changed parameter; return None if that depends on an unknown meaning.

    `values` are this slot's of every source parameter.
    """
    transform, make = write.optimizer_transform, write.make
    assert transform is not None
    assert make is not None
    if slot in GRADIENTS:
        return transform(False, *values)
    if slot in SQUARES:
        return transform(True, *values)
    if slot in WEIGHTS:
        return make(*values)
    if slot in FREE:
        return _unscaled(transform, values)
    as_gradient = transform(False, *values)
    others = (transform(True, *values), make(*values))
    return as_gradient if all(same_bits(as_gradient, other) for other in others) else None


def _unscaled(transform: Callable[..., torch.Tensor], values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Carry like a gradient, but without its factor; really new elements get the old mean."""
    factor = transform(False, *(torch.ones_like(value) for value in values))
    taken = transform(False, *values)
    mean = torch.cat([value.reshape(-1) for value in values]).mean()
    return torch.where(factor == 0, mean.to(taken.dtype), taken / factor).to(taken.dtype)
