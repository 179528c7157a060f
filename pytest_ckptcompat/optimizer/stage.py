"""The optimizer stage: from the checkpoint's outer object to one step on copies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from pytest_ckptcompat.checkpoint.objects import given, withheld
from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.tensors.difference import same_bits
from pytest_ckptcompat.tensors.footprint import tensors
from pytest_ckptcompat.tensors.unread import Unread

from . import faults
from .growth import RESET
from .naming import one_state
from .resumption import Resumption, Training
from .slots import unread_part
from .state import Naming, Saved, State, saved_states
from .trial import Factory, OptimizerError, Unavailable, ghosts, groups_of, made, step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.recipes.recipe import Recipe

STATE, STEP = CLAIMS = "optimizer state", "optimizer step"


def check_optimizer(
    factory: Factory,
    checkpoint: Checkpoint,
    recipe: Recipe,
    model: nn.Module,
    source: nn.Module | None = None,
    holder: Checkpoint | None = None,
) -> tuple[list[Promise], list[Finding]]:
    """Check whether training can resume with the checkpoint's optimizer state and the new model.

    The state is named by parameter, compared with the old shapes, grown, and compared with the new shapes.
    Only then does torch get it, for one step on copies of the parameters: ``load_state_dict`` checks no
    shapes, and a fused step on a wrong shape corrupts memory.

    Args:
        factory: the declared ``optimizer=``; called with the named parameters if it takes them.
        checkpoint: the old checkpoint.
        recipe: the recipe; empty if the checkpoint is loaded as it is.
        model: the new model, loaded. It is not changed.
        source: the model that the checkpoint was made for, or None; it may be on the meta device.
        holder: the file that holds the optimizer's state, if it has its own file.
    """
    holder = checkpoint if holder is None else holder
    old, parameters = checkpoint.meta(), dict(model.named_parameters())
    applied = recipe.run(old, model.state_dict())
    promises: list[Promise] = []
    findings: list[Finding] = []
    try:
        optimizer, groups = made(factory, ghosts(parameters))
        training = Training(recipe, applied, old, model, source, lambda named: groups_of(factory, named))
        saved, names = _meant(saved_states(holder.wrapper), training)
        stored = saved.named(names)
        rows = faults.is_foreign(optimizer)
        _none(faults.misshapen(stored, old, rows=rows))
        before = _read(stored, holder.materialise)
        resumption = training.resumed(saved, names, before)
        after = resumption.state
        came = {name: applied.origin.get(name, name) or "" for name in parameters}
        wrong = faults.misshapen(after, parameters, rows=rows)
        _none(wrong + faults.left_behind(after, parameters, _by_new_name(old, came)))
        _none(faults.refused(saved, groups) if not recipe.operators else [])
        _none(faults.impossible(after))
        if reason := faults.foreign(optimizer, after):
            remedy = "start with new state, since load_state_dict accepts this one and the next step may fail"
            _unchecked(STATE, reason, _warning(f"{reason}: {remedy}"))
        _none(faults.incomplete(optimizer, after))
        before = _by_new_name(before, came)
        promises.append(_kept(optimizer, groups, before, resumption))
        findings += faults.left_out(resumption.left_out)
        findings += faults.displaced(resumption, old, model)
        findings += faults.restarts(before, after, _by_new_name(_betas(saved, names), came))
        _step(factory, parameters, after, saved, holder.materialise)
        promises.append(Promise(STEP, "kept", f"one step of {type(optimizer).__name__}, all finite"))
    except Unavailable as reason:
        promises.append(Promise(STEP, "unchecked", str(reason)))
    except OptimizerError as error:
        promises.append(Promise(STEP, "broken", str(error)))
        findings.append(finding("optimizer-error", message=str(error)))
    except _StoppedError as stop:
        promises.append(stop.promise)
        findings += stop.findings
    return promises, findings


class _StoppedError(Exception):
    """Raised if a promise is broken or can't be checked, to stop the stage."""

    def __init__(self, promise: Promise, findings: list[Finding]) -> None:
        super().__init__(promise.detail)
        self.promise = promise
        self.findings = findings


def _unchecked(name: str, reason: str, *findings: Finding) -> NoReturn:
    raise _StoppedError(Promise(name, "unchecked", reason), list(findings))


def _warning(text: str) -> Finding:
    return replace(finding("optimizer-error", message=text), severity="warn")


def _none(wrong: list[Finding]) -> None:
    """Stop if there are faults."""
    if wrong:
        first = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        detail = f"{first.key}: {first.message or first.checkpoint}{more}"
        raise _StoppedError(Promise(STATE, "broken", detail), wrong)


def _meant(found: list[Saved], training: Training) -> tuple[Saved, Naming]:
    if not found:
        missing = finding("optimizer-missing", message="the checkpoint has no optimizer state")
        _unchecked(STATE, "the checkpoint has none", missing)
    if reason := found[0].unread:
        text = f"{found[0].path}: {reason}"
        _unchecked(STATE, text, _warning(text))
    try:
        return one_state(found, training.evidence)
    except LookupError as reason:
        _unchecked(
            STATE,
            "which parameter each state belongs to can't be determined",
            finding("optimizer-error", message=str(reason)),
        )


def _read(state: State, materialise: Callable[[Any], torch.Tensor]) -> State:
    _need(STATE, tensors(value for slots in state.values() for value in slots.values()), "it")
    return {name: _values(slots, materialise) for name, slots in state.items()}


def _need(name: str, needed: int, what: str) -> None:
    """Stop if there is too little memory."""
    room = memory.free()
    if room is not None and needed > room:
        _unchecked(name, f"{what} takes {memory.shown(needed)}, {memory.shown(room)} are free")


def _values(slots: Mapping[str, Any], materialise: Callable[[Any], torch.Tensor]) -> dict[str, Any]:
    """Return the values of parts as torch would load them, with an `Unread` for what it would not load."""
    return {slot: _value(value, materialise) for slot, value in slots.items()}


def _value(value: Any, materialise: Callable[[Any], torch.Tensor]) -> Any:
    if why := withheld(value):
        return Unread.of("", why)
    return materialise(value) if hasattr(value, "shape") else given(value, materialise)


def _by_new_name(by_old_name: Mapping[str, Any], came: Mapping[str, str]) -> dict[str, Any]:
    return {name: by_old_name[old] for name, old in came.items() if old in by_old_name}


def _kept(optimizer: torch.optim.Optimizer, groups: Naming, before: State, resumption: Resumption) -> Promise:
    names = [name for group in groups for name in group]
    after = resumption.state
    served = sum(name in after for name in names)
    grew = sum(_grew(before.get(name, {}), after.get(name, {})) for name in names)
    rows = f", old rows of {grew} kept" if grew else ""
    lost = sum(reason != RESET for reason in resumption.left_out.values())
    anew = f", {lost} left out" if lost else ""
    return Promise(STATE, "kept", f"{type(optimizer).__name__}: {served} of {len(names)} by name{rows}{anew}")


def _grew(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether every slot with more rows starts with the old rows, bit for bit."""
    pairs = [
        (before[slot], new)
        for slot, new in after.items()
        if isinstance(new, torch.Tensor) and isinstance(before.get(slot), torch.Tensor)
    ]
    more = [(old, new) for old, new in pairs if old.shape != new.shape and old.dim() == new.dim()]
    return bool(more) and all(same_bits(old, new[tuple(map(slice, old.shape))]) for old, new in more)


def _betas(saved: Saved, names: Naming) -> dict[str, tuple[float, float]]:
    """Return Adam's betas for every parameter whose group has them."""
    found: dict[str, tuple[float, float]] = {}
    for group, called in zip(saved.groups, names, strict=True):
        match group.options.get("betas"):
            case [float(first), float(second)]:
                found |= dict.fromkeys(called, (first, second))
    return found


def _step(
    factory: Factory,
    parameters: Mapping[str, nn.Parameter],
    state: State,
    saved: Saved,
    materialise: Callable[[Any], torch.Tensor],
) -> None:
    options = [_values(group.options, materialise) for group in saved.groups]
    shared = _values(saved.shared, materialise)
    for name, slots in (*state.items(), *((saved.path, each) for each in (*options, shared))):
        if why := unread_part(slots):
            _unchecked(STEP, f"{escape(name)}: {why}")
    _need(STEP, 2 * tensors(parameters.values()), "a copy")  # and its gradients
    copies = {
        name: nn.Parameter(each.detach().clone(), each.requires_grad) for name, each in parameters.items()
    }
    step(factory, copies, state, options, shared)
