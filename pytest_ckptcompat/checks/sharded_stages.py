"""The stages of a model that shards itself. Shapes are compared anywhere, values only where its ranks run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.forward.real import forward
from pytest_ckptcompat.models.blueprint import Blueprint
from pytest_ckptcompat.models.sharded import HOW, has_ranks, load_sharded, stand_in
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.unread import spared
from pytest_ckptcompat.verification.function import NAME as FUNCTION
from pytest_ckptcompat.verification.loaded import not_finite, tied_conflicts

from .log import Stopped
from .subject import Batch
from .value_stages import loading, optimizer_stage, strictly
from .verify_stage import verify_stage, verify_unread

if TYPE_CHECKING:
    from pytest_ckptcompat.models.sharded import Sharded
    from pytest_ckptcompat.recipes.applied import Applied

    from .subject import Subject


def sharded_stages(subject: Subject, applied: Applied) -> nn.Module:
    """Run the stages after compare; return the model with this rank's part of the values.

    Without the other ranks nothing is loaded, and the report says so. The subject's schema is a stand-in.
    """
    arguments, inputs, log, reason = subject.arguments, subject.inputs, subject.log, subject.reason
    weights_alone = replace(
        subject, source=None, batch=Batch(None), arguments=replace(arguments, source_model=None)
    )
    if not reason and isinstance(arguments.model, nn.Module):
        reason = "not loaded: a model that shards itself can't be copied; give what makes it"
    if reason or not has_ranks():
        reason = reason or f"not loaded: {HOW}"
        log.stage("load", "skipped", reason)
        verify_unread(replace(weights_alone, reason=reason), applied, synthetic_values=False)
        raise Stopped(reason)
    model, whole, applied = _loaded(subject)
    make = subject.blueprint.make
    plain = Blueprint(subject.blueprint.name, lambda: stand_in(make(), values=True))
    verify_stage(replace(weights_alone, blueprint=plain), subject.ckpt.stored(), applied, whole)
    if inputs is not None and (subject.source is not None or subject.source_commit):
        log.promises.append(Promise(FUNCTION, "unchecked", "the model shards itself"))
    device = arguments.device or "auto"
    if device == "rehearse" or inputs is None:
        log.stage("forward", "skipped", "no inputs declared" if inputs is None else "the model shards itself")
    else:
        outcome = forward(model, inputs, "cpu" if device == "auto" else device, or_skip=device == "auto")
        log.add(*outcome.findings)
        log.stage("forward", outcome.status, outcome.detail)
    optimizer_stage(subject, whole)
    return model


def _loaded(subject: Subject) -> tuple[nn.Module, Sharded, Applied]:
    """Return the loaded model, the same model unsharded, and the result of the recipe."""
    log = subject.log
    with loading(subject, subject.ckpt.stored()) as applied:
        model = subject.blueprint.build()
        state = {key: materialise(value) for key, value in applied.state_dict.items()}
        with spared(model, state):
            load_sharded(model, state, strict=log.comparison.fits)
        whole = stand_in(model, values=True)
    model.eval()
    found = [*not_finite(whole), *tied_conflicts(whole, applied.state_dict)]
    log.judged("load", found, f"{strictly(log.comparison)}, this rank's part of it")
    return model, whole, applied
