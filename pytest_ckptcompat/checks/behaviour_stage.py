"""Check whether today's model still computes what a lock or a past commit recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import CheckpointError, ModelError, RecipeError
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.models.skeleton import LARGE
from pytest_ckptcompat.tensors import plain, synthetic
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.tensors.unread import spared
from pytest_ckptcompat.verification.behaviour import Behaviour, Comparison, compare, is_random, reached
from pytest_ckptcompat.verification.effects import effects_of
from pytest_ckptcompat.verification.function import NAME
from pytest_ckptcompat.verification.wide_run import RunError, Trial, run

from .behaviours import too_large, undrawn
from .past_checkpoint import Question, behaviour_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.core.claim import Verdict
    from pytest_ckptcompat.recipes.applied import Applied

    from .subject import Subject


def compare_source(subject: Subject, applied: Applied) -> Verdict:
    """Compare with ``source_model="git:REF"``: the model of that commit, loaded with the same checkpoint."""
    arguments, batch, ckpt = subject.arguments, subject.batch, subject.ckpt
    if batch.lacking:
        return Promise(NAME, "unchecked", batch.lacking), []
    try:
        model_args = arguments.arguments_of_model(ckpt.contents)
        question = Question(arguments.model, model_args, arguments.method, batch=batch.plain)
        then = Behaviour.from_json(behaviour_at(subject.source_commit, question, ckpt, subject.place))
        if then.uncompared:
            return _uncompared(then.uncompared)
        return _verdict(then, subject, applied, ckpt.stored(), "the checkpoint's values")
    except (CheckpointError, ValueError) as error:
        why = "the commit of source_model can't be asked"
        return Promise(NAME, "unchecked", why), [finding("source-model-error", message=str(error))]


def compare_recorded(subject: Subject) -> Verdict | None:
    """Compare today's model with what a lock or a past commit recorded, if anything, on synthetic values."""
    ckpt, blueprint, batch = subject.ckpt, subject.blueprint, subject.batch
    held = ckpt.contents.header.behaviour
    if held is None:
        lost = ckpt.format == "git" and batch.inputs is not None and batch.lacking
        return _uncompared(batch.lacking) if lost else None
    try:
        then = Behaviour.from_json(held)
        kept, gain = _constructed(held, ckpt), _gain(held)
    except ValueError as error:
        damaged = finding("no-checkpoint", message=f"{ckpt.name}: {error}: lock it again")
        return Promise(NAME, "unchecked", "what was recorded is damaged"), [damaged]
    method = str(held.get("method", "forward"))
    if batch.lacking:
        return _uncompared(batch.lacking)
    if plain.digest(batch.plain) != held.get("batch"):
        return _uncompared("its outputs were recorded for other inputs")
    if batch.inputs is not None and batch.inputs.method != method:
        return _uncompared(f"its outputs were recorded of the method {method}")
    if why := then.uncompared or too_large(ckpt, ckpt.contents.limits):
        return _uncompared(why)
    try:
        if kept is None:
            kept = undrawn(blueprint.build())
        if ckpt.objects:  # a table holds no values: today's extra state
            state = blueprint.build().state_dict()
            kept = {key: state.get(key) for key in ckpt.objects} | kept
        values = synthetic.state_dict(ckpt, ckpt.ties, kept, gain)
        applied = subject.recipe.run(values, subject.schema.state_dict())
    except (ModelError, RecipeError) as error:
        return _uncompared(f"the recipe on synthetic values: {error}")
    return _verdict(then, subject, applied, values, "synthetic values")


def _verdict(
    then: Behaviour, subject: Subject, applied: Applied, old: Mapping[str, Any], values: str
) -> Verdict:
    """Run today's model on `applied`, which the recipe made of `old`, and compare its outputs."""

    def load(model: nn.Module) -> None:
        with spared(model, applied.state_dict):
            model.load_state_dict(applied.state_dict, strict=subject.log.comparison.fits)

    assert subject.inputs is not None
    drawn = synthetic.inputs(plain.unpacked(subject.batch.plain))
    large = weights(subject.schema) > LARGE
    trial = Trial(subject.blueprint.build, load, drawn, subject.inputs.method, large)
    try:
        now = run(trial)
    except RunError as error:
        message = f"it gave {_count(len(then.outputs))} then, and now the model does not run: {error}"
        gone = finding("function-changed", message=message)
        return Promise(NAME, "broken", "the model does not run"), [gone]
    effects = effects_of(applied, old, {})
    found = compare(then, now, effects)
    if found.changed and (random := is_random(now, trial)):
        return _uncompared(random)
    declared = ""
    if found.changed and effects.changes:
        within = None if effects.anywhere else reached(now, trial, effects.made)
        beyond = compare(then, now, effects, within)
        if within is None or not beyond.changed:
            declared = "; ".join(effects.changes)
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
    """Return the recorded integers, None if they were too large; raise ValueError if they are damaged."""
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
    """Return what the variance of weights was multiplied by; raise ValueError if it is damaged."""
    gain = held.get("gain", 1.0)
    if not isinstance(gain, (int, float)) or not 0 < gain < 1e6:
        raise ValueError("the gain of its weights is not a positive number")
    return float(gain)
