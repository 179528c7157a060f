"""Check whether today's model still computes what a lock or a past commit recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import CheckpointError, ModelError, RecipeError
from pytest_ckptcompat.core.findings import Finding, Promise, Status, finding
from pytest_ckptcompat.tensors import plain, synthetic
from pytest_ckptcompat.tensors.unread import spared
from pytest_ckptcompat.verification.behaviour import (
    Behaviour,
    Comparison,
    compare,
    reached,
)
from pytest_ckptcompat.verification.regions import rows_moved
from pytest_ckptcompat.verification.steadiness import is_random
from pytest_ckptcompat.verification.verify import precision_of, said_of
from pytest_ckptcompat.verification.wide_run import RunError, Trial, run

from .behaviours import too_large, undrawn
from .log import errors
from .past_checkpoint import Place, Question, behaviour_at, values_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.models.blueprint import Blueprint
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .subject import Subject

NAME = "function kept"

Verdict = tuple[Promise, list[Finding]]


def compare_behaviour(subject: Subject, recipe: Recipe, limits: Limits) -> None:
    """Compare the model's outputs with recorded ones, if any. For the arguments see `on_synthetic_values`."""
    ckpt, log = subject.ckpt, subject.log
    try:
        verdict = on_synthetic_values(subject, recipe, limits)
    except CheckpointError as error:
        return log.add(finding("no-checkpoint", message=str(error)))
    if verdict is None:
        return None
    promise, found = verdict
    log.promises = [each for each in log.promises if each.name != NAME] + [promise]
    left = sum(each.status == "unchecked" for each in log.promises if each is not promise)
    rest = f"; {ckpt.valueless}: {left} promises not checked" if left else ""
    log.stages = [stage for stage in log.stages if stage.name != "verify"]
    if promise.status == "unchecked":
        log.add(*found)
        return log.stage("verify", "skipped", f"function not compared{rest}")
    return log.judged("verify", found, f"function {'kept' if promise.status == 'kept' else 'changed'}{rest}")


def compare_source(subject: Subject, applied: Applied, model_args: Mapping[str, Any], place: Place) -> None:
    """Compare with ``source_model="git:REF"``: the model of that commit, loaded with the same checkpoint.

    Args:
        subject: of the check.
        applied: the result of the recipe.
        model_args: keyword arguments of today's model.
        place: where to look for the commit.
    """
    arguments, batch, log = subject.arguments, subject.batch, subject.log
    if batch.lacking:
        promise, found = Promise(NAME, "unchecked", batch.lacking), list[Finding]()
    else:
        question = Question(arguments.model, model_args, batch.plain, arguments.method)
        try:
            held = behaviour_at(arguments.source_model, question, values_of(subject.ckpt), place)
            promise, found = _on_values(Behaviour.from_json(held), subject, applied)
        except (CheckpointError, ValueError) as error:
            promise = Promise(NAME, "unchecked", "the commit of source_model can't be asked")
            found = [finding("source-model-error", message=str(error))]
    log.promises.append(promise)
    log.add(*found)
    kept = sum(each.status == "kept" for each in log.promises)
    told = f"{kept} of {len(log.promises)} promises kept"
    for place_of, stage in enumerate(log.stages):
        if stage.name == "verify":
            status: Status = "failed" if errors(found) else stage.status
            log.stages[place_of] = replace(stage, status=status, detail=told)


def _on_values(then: Behaviour, subject: Subject, applied: Applied) -> Verdict:
    if then.uncompared:
        return _uncompared(then.uncompared)

    def load(model: nn.Module) -> None:
        model.load_state_dict(applied.state_dict, strict=subject.log.comparison.fits)

    drawn = synthetic.inputs(plain.unpacked(subject.batch.plain))
    method = "forward" if subject.inputs is None else subject.inputs.method
    trial = Trial(subject.blueprint.build, load, drawn, method)
    return _verdict(then, trial, applied, subject.ckpt.stored(), "the checkpoint's values")


def on_synthetic_values(subject: Subject, recipe: Recipe, limits: Limits) -> Verdict | None:
    """Compare what a lock or a past commit recorded with today's model.

    Args:
        subject: of the check; its checkpoint is a table without values.
        recipe: the recipe; empty if the table loads as it is.
        limits: caps on the synthetic values.

    Returns:
        The promise and its findings; None if nothing was recorded.

    Raises:
        CheckpointError: the record is damaged.
    """
    ckpt, blueprint, batch = subject.ckpt, subject.blueprint, subject.batch
    held = ckpt.contents.header.behaviour
    if held is None:
        lost = ckpt.format == "git" and batch.inputs is not None and batch.lacking
        return _uncompared(batch.lacking) if lost else None
    method = str(held.get("method", "forward"))
    try:
        then = Behaviour.from_json(held)
        kept, gain = _constructed(held, ckpt), _gain(held)
    except ValueError as error:
        raise CheckpointError(f"{ckpt.name}: {error}: lock it again") from None
    if batch.lacking:
        return _uncompared(batch.lacking)
    if plain.digest(batch.plain) != held.get("batch"):
        return _uncompared("its outputs were recorded for other inputs")
    if batch.inputs is not None and batch.inputs.method != method:
        return _uncompared(f"its outputs were recorded of the method {method}")
    if then.uncompared or (large := too_large(ckpt, limits)):
        return _uncompared(then.uncompared or large)
    try:
        if kept is None:
            kept = undrawn(blueprint.build())
        objects = {key: value for key, value in _objects(blueprint, ckpt).items() if key not in kept}
        values = synthetic.state_dict(ckpt, ckpt.ties, kept | objects, gain)
        applied = recipe.run(values, subject.schema.state_dict())
    except (ModelError, RecipeError) as error:
        return _uncompared(f"the recipe on synthetic values: {error}")

    def load(model: nn.Module) -> None:
        with spared(model, applied.state_dict):
            model.load_state_dict(applied.state_dict, strict=subject.log.comparison.fits)

    drawn = synthetic.inputs(plain.unpacked(batch.plain))
    trial = Trial(blueprint.build, load, drawn, method)
    return _verdict(then, trial, applied, values, "synthetic values")


def _verdict(then: Behaviour, trial: Trial, applied: Applied, old: Mapping[str, Any], values: str) -> Verdict:
    try:
        now = run(trial)
    except RunError as error:
        message = f"it gave {_count(len(then.outputs))} then, and now the model does not run: {error}"
        gone = finding("function-changed", message=message)
        return Promise(NAME, "broken", "the model does not run"), [gone]
    said, resized = said_of(applied, old), bool(applied.touched)
    rows, precision = rows_moved(applied, old), precision_of(applied, {})
    found = compare(then, now, rows, resized=resized, precision=precision)
    if found.changed and (random := is_random(now, trial)):
        return _uncompared(random)
    declared = ""
    if found.changed and said.changes:
        within = None if said.anywhere else reached(now, trial, said.made)
        beyond = compare(then, now, rows, resized=resized, precision=precision, reach=within)
        if said.anywhere or not beyond.changed:
            declared = "; ".join(said.changes)
        else:
            found = beyond
    amplified = "" if then.slack == 1 else f"tolerance {then.slack:.0f} times the usual: rounding errors grow"
    return _told(found, declared, values, "; ".join(filter(None, (then.note or now.note, amplified))))


def _told(found: Comparison, declared: str, values: str, note: str) -> Verdict:
    narrow = f"; {note}" if note else ""
    alone = f"not compared: {'; '.join(found.alone)}"
    findings = [finding("function-uncompared", message=alone)] if found.alone else []
    if not found.gaps:
        return Promise(NAME, "unchecked", "no output can be paired with an old one"), findings
    worst = found.gaps[0]
    if declared:
        return Promise(NAME, "changed", f"{worst}: {declared}{narrow}"), findings
    if found.changed:
        findings.append(finding("function-changed", message=f"on {values}, {worst}{narrow}"))
        return Promise(NAME, "broken", f"{worst}{narrow}"), findings
    size = max(each.size for each in found.gaps)
    grown = "old outputs kept: " if found.grown else ""
    detail = f"{grown}max |Δ| {size:.2g} in {_count(len(found.gaps))} on {values}{narrow}"
    return Promise(NAME, "kept", detail), findings


def _uncompared(reason: str) -> Verdict:
    found = finding("function-uncompared", message=f"what the model computes was not compared: {reason}")
    return Promise(NAME, "unchecked", reason), [found]


def _count(outputs: int) -> str:
    return f"{outputs} output{'' if outputs == 1 else 's'}"


def _constructed(held: Mapping[str, Any], ckpt: Checkpoint) -> dict[str, Any] | None:
    """Return the recorded integers, or None if they were too large to be recorded.

    Raises:
        ValueError: the integers are damaged.
    """
    rows = held.get("constructed", {})
    if not isinstance(rows, dict) or not rows.keys() <= ckpt.keys():
        raise ValueError("integers are recorded for keys that it does not have")
    if None in rows.values():
        return None
    return {
        key: plain.decoded(str(text), getattr(torch, ckpt[key].dtype), list(ckpt[key].shape))
        for key, text in rows.items()
    }


def _gain(held: Mapping[str, Any]) -> float:
    """What the variance of weights was multiplied by.

    Raises:
        ValueError: it is damaged.
    """
    gain = held.get("gain", 1.0)
    if not isinstance(gain, (int, float)) or not 0 < gain < 1e6:
        raise ValueError("the gain of its weights is not a positive number")
    return float(gain)


def _objects(blueprint: Blueprint, ckpt: Checkpoint) -> dict[str, Any]:
    """Return today's extra state for those keys of the table; a table holds no values."""
    if not ckpt.objects:
        return {}
    state = blueprint.build().state_dict()
    return {key: state.get(key) for key in ckpt.objects}
