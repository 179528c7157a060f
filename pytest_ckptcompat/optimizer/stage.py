"""The optimizer stage, from the checkpoint's outer object to one step on copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.tensors.difference import same_bits
from pytest_ckptcompat.tensors.footprint import tensors

from . import faults
from .growth import grown
from .naming import one_state, tied_names
from .parameter_order import Evidence, evidence
from .state import Naming, Saved, State, saved_states
from .trial import Factory, OptimizerError, ghosts, made, step

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
) -> tuple[list[Promise], list[Finding]]:
    """Whether training can go on: the checkpoint's optimizer state serves the optimizer of the new model.

    The state is named by parameter, held against the old shapes, grown, and held against the new ones. Only
    then does torch see it, in one step on copies of the parameters: ``load_state_dict`` checks no shape, and
    a fused step on a wrong one corrupts memory.

    Args:
        factory: what ``optimizer=`` declares: called with the named parameters where it takes them.
        checkpoint: the old one.
        recipe: how it becomes the new one; an empty one where it is loaded as it is.
        model: the new model, loaded; left as it is.
        source: the model that the checkpoint was made for, if it is known; one without memory will do.
    """
    old, target = checkpoint.meta(), model.state_dict()
    return judged(
        factory,
        wrapper=checkpoint.wrapper,
        materialise=checkpoint.materialise,
        old=old,
        grow=lambda state: grown(recipe, state, old, target),
        origin=recipe.run(old, target).origin,
        model=model,
        source=source,
    )


def judged(
    factory: Factory,
    *,
    wrapper: Any,
    materialise: Callable[[Any], torch.Tensor],
    old: Mapping[str, Any],
    grow: Callable[[State], State],
    origin: Mapping[str, str | None],
    model: nn.Module,
    source: nn.Module | None = None,
) -> tuple[list[Promise], list[Finding]]:
    """`check_optimizer` of anything that has the form of a checkpoint and of a recipe.

    Args:
        factory: as there.
        wrapper: the checkpoint's outer object.
        materialise: gives the values of a tensor in it, in memory of their own.
        old: the old state dict, of which only shapes are looked at.
        grow: the state under the old names -> the state under the new ones.
        origin: new key -> the old key that it comes from, or None.
        model: as there.
        source: as there.
    """
    promises: list[Promise] = []
    findings: list[Finding] = []
    try:
        parameters = dict(model.named_parameters())
        optimizer, groups = made(factory, ghosts(parameters))
        told = evidence(lambda named: _groups(factory, named), origin, old, model, source)
        saved, names = _meant(saved_states(wrapper), told, old)
        stored = saved.named(names)
        _none(faults.misshapen(stored, old))
        before = _read(stored, materialise)
        after = _placed(grow(before), model)
        came = {name: origin.get(name, name) or "" for name in parameters}
        _none(faults.misshapen(after, parameters))
        _none(faults.left_behind(after, parameters, _by_new_name(old, came)))
        _none(faults.impossible(after))
        if reason := faults.foreign(optimizer, after):
            _unchecked(STATE, reason, faults.changed_kind(reason))
        _none(faults.incomplete(optimizer, after))
        promises.append(_kept(optimizer, groups, _by_new_name(before, came), after))
        findings += faults.displaced(saved, names, groups, origin, old, model)
        findings += faults.restarts(
            _by_new_name(before, came), after, _by_new_name(_betas(saved, names), came)
        )
        _step(factory, parameters, after, saved, materialise)
        promises.append(Promise(STEP, "kept", f"one step of {type(optimizer).__name__}, all finite"))
    except OptimizerError as error:
        promises.append(Promise(STEP, "broken", str(error)))
        findings.append(finding("optimizer-error", message=str(error)))
    except _StoppedError as stop:
        promises.append(stop.promise)
        findings += stop.findings
    return promises, findings


class _StoppedError(Exception):
    """A promise that is broken or can't be checked, after which nothing more is tried."""

    def __init__(self, promise: Promise, findings: list[Finding]) -> None:
        super().__init__(promise.detail)
        self.promise = promise
        self.findings = findings


def _unchecked(name: str, reason: str, *findings: Finding) -> NoReturn:
    raise _StoppedError(Promise(name, "unchecked", reason), list(findings))


def _none(wrong: list[Finding]) -> None:
    """Stop at the first kind of fault."""
    if wrong:
        first = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        detail = f"{first.key}: {first.message or first.checkpoint}{more}"
        raise _StoppedError(Promise(STATE, "broken", detail), wrong)


def _groups(factory: Factory, parameters: Mapping[str, nn.Parameter]) -> Naming | None:
    """The names of each group's parameters; None if the factory does not take these, as one going by name."""
    try:
        return made(factory, ghosts(parameters))[1]
    except OptimizerError:
        return None


def _meant(found: list[Saved], told: Evidence, old: Mapping[str, Any]) -> tuple[Saved, Naming]:
    if not found:
        missing = finding("optimizer-missing", message="the checkpoint has no optimizer state")
        _unchecked(STATE, "the checkpoint has none", missing)
    try:
        return one_state(found, told.candidates, old, told.doubts)
    except LookupError as reason:
        _unchecked(STATE, "whose it is can't be told", finding("optimizer-error", message=str(reason)))


def _read(state: State, materialise: Callable[[Any], torch.Tensor]) -> State:
    needed = tensors(value for slots in state.values() for value in slots.values())
    room = memory.free()
    if room is not None and needed > room:
        _unchecked(STATE, f"it takes {memory.shown(needed)}, {memory.shown(room)} are free")
    return {name: _values(slots, materialise) for name, slots in state.items()}


def _values(slots: Mapping[str, Any], materialise: Callable[[Any], torch.Tensor]) -> dict[str, Any]:
    return {slot: materialise(value) if hasattr(value, "shape") else value for slot, value in slots.items()}


def _placed(state: State, model: nn.Module) -> State:
    """The grown state under the names that the new model's optimizer has."""
    tied = tied_names(model)
    placed: dict[str, Mapping[str, Any]] = {}
    for name, slots in state.items():
        placed.setdefault(tied.get(name, name), slots)
    return placed


def _by_new_name(by_old_name: Mapping[str, Any], came: Mapping[str, str]) -> dict[str, Any]:
    return {name: by_old_name[old] for name, old in came.items() if old in by_old_name}


def _kept(optimizer: torch.optim.Optimizer, groups: Naming, before: State, after: State) -> Promise:
    names = [name for group in groups for name in group]
    served = sum(name in after for name in names)
    grew = [name for name in names if _grew(before.get(name, {}), after.get(name, {}))]
    rows = f", old rows of {len(grew)} kept" if grew else ""
    return Promise(STATE, "kept", f"{type(optimizer).__name__}: {served} of {len(names)} by name{rows}")


def _grew(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether every part of the state that has more rows has the old ones first, bit for bit."""
    pairs = [(before.get(slot), value) for slot, value in after.items()]
    tensors = [
        (old, new) for old, new in pairs if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
    ]
    more = [(old, new) for old, new in tensors if old.shape != new.shape and old.dim() == new.dim()]
    return bool(more) and all(_is_corner(old, new) for old, new in more)


def _is_corner(old: torch.Tensor, new: torch.Tensor) -> bool:
    if any(was > now for was, now in zip(old.shape, new.shape, strict=True)):
        return False
    return same_bits(old, new[tuple(slice(size) for size in old.shape)])


def _betas(saved: Saved, names: Naming) -> dict[str, tuple[float, float]]:
    """Adam's, of every parameter whose group has them."""
    found = {}
    for group, called in zip(saved.groups, names, strict=True):
        betas = group.options.get("betas")
        if (
            isinstance(betas, (list, tuple))
            and all(isinstance(beta, float) for beta in betas)
            and len(betas) == 2
        ):
            found.update(dict.fromkeys(called, (betas[0], betas[1])))
    return found


def _step(
    factory: Factory,
    parameters: Mapping[str, nn.Parameter],
    state: State,
    saved: Saved,
    materialise: Callable[[Any], torch.Tensor],
) -> None:
    needed = 2 * tensors(parameters.values())  # copies and their gradients
    room = memory.free()
    if room is not None and needed > room:
        _unchecked(STEP, f"a copy takes {memory.shown(needed)}, {memory.shown(room)} are free")
    copies = {
        name: nn.Parameter(each.detach().clone(), each.requires_grad) for name, each in parameters.items()
    }
    step(factory, copies, state, [_values(group.options, materialise) for group in saved.groups])
