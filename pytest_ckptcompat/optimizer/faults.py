"""Find faults in optimizer state: shapes, values, missing parts, averages that start anew."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.difference import is_strided, magnitude
from pytest_ckptcompat.tensors.finite import count_not_finite

from .growth import RESET
from .naming import tied_names
from .slots import ELEMENTWISE, NONNEGATIVE
from .state import Naming, Saved, State, misfits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from .resumption import Resumption

_NEEDED = {
    "SGD": {"momentum_buffer"}, "Adam": {"exp_avg", "exp_avg_sq"}, "AdamW": {"exp_avg", "exp_avg_sq"},
    "NAdam": {"exp_avg", "exp_avg_sq"}, "RAdam": {"exp_avg", "exp_avg_sq"}, "Adamax": {"exp_avg", "exp_inf"},
    "RMSprop": {"square_avg"}, "Adagrad": {"sum"}, "Adadelta": {"square_avg", "acc_delta"},
}  # fmt: skip


def is_foreign(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer is not torch's. Others may use the same names for other things."""
    return not type(optimizer).__module__.startswith("torch.optim.")


def misshapen(state: State, parameters: Mapping[str, Any], *, rows: bool = False) -> list[Finding]:
    """Find state without its parameter's shape (see `misfits`), which torch accepts and fails on later."""
    shapes = {name: tuple(each.shape) for name, each in parameters.items() if hasattr(each, "shape")}
    return [
        finding("optimizer-shape", name, f"{slot} {_shown(state[name][slot])}", _shown(parameters[name]))
        for name, slot in misfits(state, shapes, rows=rows)
    ]


def left_behind(state: State, parameters: Mapping[str, Any], before: Mapping[str, Any]) -> list[Finding]:
    """Find state of an unknown form on parameters that the model itself grew when it loaded the weights.

    `before` has the old weights by their new names.
    """
    grown = [name for name in state if name in before and before[name].shape != parameters[name].shape]
    return [
        finding("optimizer-shape", name, f"{slot} {_shown(value)}", _shown(parameters[name]))
        for name in grown
        for slot, value in state[name].items()
        if slot not in ELEMENTWISE and isinstance(value, torch.Tensor)
        if value.numel() != 1 and value.shape != parameters[name].shape
    ]


def left_out(reasons: Mapping[str, str]) -> list[Finding]:
    """Find state that is dropped though nobody asked for that: most of these parameters start anew."""
    return [
        finding("optimizer-missing", name, message=f"its state is left out: {reason}")
        for name, reason in reasons.items()
        if reason != RESET
    ]


def impossible(state: State) -> list[Finding]:
    """Find values that can't come from training."""
    return [
        finding("optimizer-value", name, message=f"{slot} {text}")
        for name, slots in state.items()
        for slot, value in slots.items()
        if (text := _impossible(slot, value))
    ]


def _impossible(slot: str, value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return "is not finite" if isinstance(value, float) and not math.isfinite(value) else ""
    if slot == "step" and value.numel() != 1:
        return f"is {_shown(value)}, not a number"
    if bad := count_not_finite(value):
        return f"has {bad} values that are NaN or infinite"
    comparable = is_strided(value) and value.dtype.is_signed and value.numel()
    if slot in NONNEGATIVE and comparable and (least := _least(value)) < 0:
        return f"is negative, down to {magnitude(least)}"
    return ""


def _least(value: torch.Tensor) -> float:
    if value.is_complex():  # torch's optimizers step on real and imaginary parts separately
        value = torch.view_as_real(value.resolve_conj())
    return float((value.float() if value.itemsize == 1 else value).min())  # float8 has no min


def foreign(optimizer: torch.optim.Optimizer, state: State) -> str:
    """Return why the state belongs to another kind of optimizer, or ``""``. The user may want that."""
    kind = type(optimizer).__name__
    has = {slot for slots in state.values() for slot in slots if slot in ELEMENTWISE}
    if is_foreign(optimizer) or kind not in _NEEDED or not has:
        return ""
    if _needed(optimizer) <= has and has & _NEEDED[kind]:
        return ""
    return f"{', '.join(sorted(has))} is not the state of {kind}"


def refused(saved: Saved, groups: Naming) -> list[Finding]:
    """Find groups of other sizes than the saved ones, which torch's ``load_state_dict`` refuses."""
    sizes = [len(group) for group in groups]
    if saved.layout != "numbered" or sizes == saved.lengths:
        return []
    theirs, ours = (" + ".join(map(str, counts)) for counts in (saved.lengths, sizes))
    text = (
        f"torch's load_state_dict refuses it: {saved.path} has groups of {theirs} parameters, and the groups "
        f"that optimizer= makes have {ours}"
    )
    return [finding("optimizer-error", message=text)]


def incomplete(optimizer: torch.optim.Optimizer, state: State) -> list[Finding]:
    """Find parameters whose state lacks what a step needs."""
    lacking = {name: sorted(_needed(optimizer) - slots.keys()) for name, slots in state.items()}
    return [
        finding("optimizer-error", name, message=f"its state lacks {', '.join(slots)}")
        for name, slots in lacking.items()
        if slots
    ]


def _needed(optimizer: torch.optim.Optimizer) -> set[str]:
    kind = "" if is_foreign(optimizer) else type(optimizer).__name__
    if kind == "SGD" and not any(group["momentum"] for group in optimizer.param_groups):
        return set()
    return _NEEDED.get(kind, set())


def displaced(resumption: Resumption, old: Mapping[str, Any], model: nn.Module) -> list[Finding]:
    """Find state that torch's ``load_state_dict`` would silently give to another parameter.

    torch goes by position, whatever names the file has, and refuses only groups of other lengths. If the
    shapes differ, the next step raises. If they are the same, nothing ever does.
    """
    saved, names, groups, origin = resumption.saved, resumption.names, resumption.groups, resumption.origin
    if list(map(len, groups)) != saved.lengths or any(isinstance(i, str) for i in saved.groups[0].ids):
        return []  # torch refuses it, or loads it by name
    tied, came = tied_names(model), defaultdict[str, set[str | None]](set)
    for name, _ in model.named_parameters(remove_duplicate=False):
        came[tied.get(name, name)].add(origin.get(name, name))
    parameters, state = dict(model.named_parameters()), saved.named(names)
    places = zip(chain(*names), chain(*groups), strict=True)
    wrong = [
        (new, before)
        for before, new in places
        if before in state and None not in came[new] and before not in came[new]
        if old[before].shape == parameters[new].shape
    ]
    if not wrong:
        return []
    new, before = wrong[0]
    text = (
        f"torch's load_state_dict goes by position and would give {len(wrong)} parameters the state of "
        f"another of the same shape, this one that of {escape(before)}: renumber it first "
        "(`ckptcompat apply` does, for an optimizer of model.parameters())"
    )
    return [replace(finding("optimizer-error", new, message=text), severity="warn")]


def restarts(before: State, after: State, betas: Mapping[str, tuple[float, float]]) -> Iterator[Finding]:
    """Find Adam's moments that are zero in the added part, while the step count continues.

    Everything is by new names.
    """
    for name, slots in after.items():
        old, new = before.get(name, {}).get("exp_avg_sq"), slots.get("exp_avg_sq")
        if not (isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor) and _added_is_zero(old, new)):
            continue
        count = float(slots.get("step", 0))
        times = restart(count, betas.get(name, (0.9, 0.999)))
        if times > 1.5:
            text = (
                f"the added part has zero moments at step {count:.0f}: "
                f"its first updates are up to {times:.1f}× the learning rate"
            )
            yield finding("optimizer-restart", name, message=text)


def _added_is_zero(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Return whether a grown tensor has only zeros beyond its old elements, which are not all zero."""
    if new.numel() <= old.numel() or not bool(old.any()):
        return False
    return int(new.count_nonzero()) == int(old.count_nonzero())


def restart(count: float, betas: tuple[float, float]) -> float:
    """Return the largest first update, in learning rates, if Adam's moments are zero but `step` is kept.

    The bias correction then assumes that the averages have long filled up. With a constant gradient, after k
    further steps (t = count + k), the update is (1 - b1^k) / (1 - b1^t) · sqrt((1 - b2^t) / (1 - b2^k)).
    """
    b1, b2 = betas
    if not (0 < b1 < 1 and 0 < b2 < 1):
        return 1.0

    def update(k: int) -> float:
        t = count + k
        return float((1 - b1**k) / (1 - b1**t) * math.sqrt((1 - b2**t) / (1 - b2**k)))

    return max(update(k) for k in range(1, 100))


def _shown(value: Any) -> str:
    return shown(tuple(value.shape), str(value.dtype))
