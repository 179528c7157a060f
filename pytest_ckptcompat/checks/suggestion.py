"""Suggest a recipe: search for one and compare it with everything that was declared."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.recipes.operators.fold_batch_norm import fold_batch_norm
from pytest_ckptcompat.recipes.recipe import Releases
from pytest_ckptcompat.report.advice import Remedy
from pytest_ckptcompat.suggest.budget import SECONDS
from pytest_ckptcompat.suggest.repair import repair
from pytest_ckptcompat.verification.comparison import compare
from pytest_ckptcompat.verification.function import NAME as FUNCTION

from .log import Log, Stopped
from .value_stages import load_stage
from .verify_stage import verify_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.recipe import Recipe
    from pytest_ckptcompat.suggest.search import Suggestion

    from .subject import Subject


MOST_SECONDS = 10
"""The time after which no further variant of a recipe is tried on the values."""
_ASSUMED = (
    "fold_batch_norm keeps the function if each norm directly follows its layer, "
    "which source_model= would show."
)
_PARTS = {
    "adapter": "The checkpoint has adapters, and the model has none: merge_lora(alpha=...) merges them.",
    "quantisation": "The weights are quantised, and the model's are not: they must be dequantised.",
}


def advise(subject: Subject, declared: Recipe) -> None:
    """Suggest a recipe in place of the declared one. A fault of the search never changes the verdict."""
    if isinstance(declared, Releases):
        return  # one recipe can't replace several; the check of today's model says what to do
    log = subject.log
    try:
        found = _found(subject, declared)
        log.suggestion, about = _proved(subject, found)
    except Exception as error:
        fault = f"The search for a recipe failed, an error of pytest-ckptcompat itself: {raised(error)}."
        log.suggestion, log.remedy = None, Remedy(notes=(fault,))
        return
    log.remedy = Remedy(
        partial=found.partial,
        choices=found.choices,
        unexplained=found.unexplained,
        notes=(*about, *_notes(found)),
    )


def _found(subject: Subject, declared: Recipe) -> Suggestion:
    schema, source = subject.schema, subject.source
    target, raw = schema.state_dict(), subject.ckpt.meta()

    def differences(recipe: Recipe) -> list[str]:
        return compare(schema, recipe.apply(raw, target)).differing

    modules = dict(schema.named_modules(remove_duplicate=False))
    old = None if source is None else source.schema().state_dict()
    return repair(declared, raw, target, differences, modules, old)


def _proved(subject: Subject, found: Suggestion) -> tuple[Recipe | None, list[str]]:
    """Return the recipe and notes on whether the model with it gives the outputs of source_model."""
    if found.recipe is None:
        return None, []
    if subject.source is None or subject.inputs is None or subject.reason:
        folds = any(isinstance(operator, fold_batch_norm) for operator in found.recipe.operators)
        return found.recipe, [_ASSUMED] if folds else []
    began = perf_counter()
    try:
        first, whole = _function(subject, found.recipe)
    except Stopped as stop:
        return None, [f"A recipe was found for the shapes, but with the values, {stop.reason}."]
    if first.status == "unchecked":
        return found.recipe, [f"Whether it keeps the model's function was not compared: {first.detail}."]
    if first.status == "kept" and whole:
        return found.recipe, [f"With it the outputs are those of source_model: {first.detail}."]
    for variant in found.variants():
        if perf_counter() - began > MOST_SECONDS:
            break
        with suppress(Stopped):
            promise, all_of_it = _function(subject, variant)
            if promise.status == "kept" and all_of_it:
                return variant, [f"With it the outputs are those of source_model: {promise.detail}."]
    if first.status == "kept":
        return found.recipe, [f"With it the outputs that were compared are kept: {first.detail}."]
    return found.recipe, [f"It does not keep the model's function: {first.detail}."]


def _function(subject: Subject, recipe: Recipe) -> tuple[Promise, bool]:
    """Return the promise that a recipe keeps the model's function, and whether all outputs were compared."""
    log = Log()
    subject = replace(subject, recipe=recipe, log=log)
    model, applied, old = load_stage(subject)
    verify_stage(subject, old, applied, model)
    unknown = Promise(FUNCTION, "unchecked", "no reason is known")
    promise = next((promise for promise in log.promises if promise.name == FUNCTION), unknown)
    return promise, all(found.rule != "function-uncompared" for found in log.findings)


def _notes(found: Suggestion) -> Iterator[str]:
    yield from (text for kind, text in _PARTS.items() if kind in found.parts)
    if found.dropped:
        yield f"It drops trained weights: {', '.join(found.dropped)}."
    if found.cut:
        yield f"It leaves out trained rows of {', '.join(found.cut)}."
    for first, other in found.tied:
        yield (
            f"The model ties {escape(other)} to {escape(first)}, and the checkpoint has them apart: "
            "if their values differ, one of them is lost."
        )
    if found.too_long:
        which = "It is the beginning of" if found.partial else "Too many operators to be tried:"
        yield f"{which} a recipe of {found.too_long:,}."
    if found.stopped:
        yield f"The search for a recipe was stopped after {SECONDS:.0f} s."
