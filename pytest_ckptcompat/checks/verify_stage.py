"""The stage that verifies promises: on the loaded values, or on synthetic ones if there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.claim import NEEDED
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.optimizer.stage import CLAIMS as OPTIMIZER_CLAIMS
from pytest_ckptcompat.recipes.recipe import Releases
from pytest_ckptcompat.tensors import synthetic
from pytest_ckptcompat.verification.function import NAME as FUNCTION
from pytest_ckptcompat.verification.verify import claims, of_steps, verify

from .behaviour_stage import compare_recorded, compare_source
from .behaviours import too_large
from .log import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_ckptcompat.recipes.applied import Applied

    from .subject import Subject


def verify_stage(subject: Subject, old: Mapping[str, Any], applied: Applied, model: nn.Module) -> None:
    """Check every promise of the recipe, which made `applied` of `old`, on the loaded model."""
    comparison, arguments = subject.log.comparison, subject.arguments
    promises, found = verify(
        claims(
            subject.recipe,
            applied,
            old=old,
            model=model,
            build=subject.blueprint.build,
            method=arguments.method,
            protect=arguments.protect,
            waived=[*comparison.missing, *comparison.unexpected],
            **subject.both_models,
        )
    )
    if subject.source_commit:
        promise, faults = compare_source(subject, applied)
        promises, found = [*promises, promise], found + faults
    subject.log.promises += promises
    subject.log.judged("verify", found, kept_of(promises))


def kept_of(promises: list[Promise], what: str = "promises") -> str:
    """Return how many promises were kept, in words."""
    return f"{sum(each.status == 'kept' for each in promises)} of {len(promises)} {what} kept"


def verify_unread(subject: Subject, applied: Applied, *, synthetic_values: bool = True) -> None:
    """List promises as unchecked because no values are read.

    With `synthetic_values`, what these can prove is proved: the steps of releases, and the function that a
    lock or a commit recorded.
    """
    log, promises = subject.log, _unproved(subject, applied)
    proved, compared, found, told = list[Promise](), list[Promise](), list[Finding](), list[str]()
    if synthetic_values and isinstance(subject.recipe, Releases):
        proved, found = _proved_steps(subject)
        names = {promise.name for promise in proved}
        promises = [*proved, *(each for each in promises if each.name not in names)]
        told += [f"{kept_of(proved, 'promises of its steps')} on synthetic values"] if proved else []
    if synthetic_values and (verdict := compare_recorded(subject)) is not None:
        compared, found = [verdict[0]], found + verdict[1]
        promises = [each for each in promises if each.name != FUNCTION]
        told.append(f"function {_COMPARED.get(verdict[0].status, 'changed')}")
    log.promises += promises + compared
    if left := sum(promise.status == "unchecked" for promise in promises):
        told.append(f"{subject.reason}: {left} promises not checked")
    detail = "; ".join(told) or subject.reason
    if errors(found) or any(promise.status != "unchecked" for promise in proved + compared):
        log.judged("verify", found, detail)
    else:
        log.add(*found)
        log.stage("verify", "skipped", detail)


_COMPARED = {"kept": "kept", "unchecked": "not compared"}


def _unproved(subject: Subject, applied: Applied) -> list[Promise]:
    """Return the promises of the recipe and the optimizer as unchecked."""
    optimizer = subject.arguments.optimizer
    if not subject.recipe.operators and optimizer is None:
        return []
    old, schema = subject.ckpt.meta(), subject.schema
    promised = claims(subject.recipe, applied, old=old, model=schema, **subject.both_models)
    stepped = OPTIMIZER_CLAIMS if optimizer is not None else ()
    return [claim.unproved() for claim in promised] + [Promise(name, "unchecked", NEEDED) for name in stepped]


def _proved_steps(subject: Subject) -> tuple[list[Promise], list[Finding]]:
    """Prove the promises of a recipe's steps on synthetic values of the checkpoint's table."""
    ckpt, recipe = subject.ckpt, subject.recipe
    if large := too_large(ckpt, ckpt.contents.limits):
        why = f"the steps were not proved on synthetic values: {large}"
        return [], [finding("recipe-unchecked", message=why)]
    old, target = synthetic.state_dict(ckpt, ckpt.ties), subject.schema.state_dict()
    try:
        return verify(of_steps(recipe, recipe.run(old, target), old, target))
    except RecipeError as error:
        return [], [finding(error.rule, error.key, message=f"on synthetic values: {error}")]
