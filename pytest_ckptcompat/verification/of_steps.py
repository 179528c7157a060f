"""Collect what the operators of a recipe promise, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.claim import Claim, Verdict, failed
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.tensors.difference import difference

from .transfer import changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.recipes.applied import Applied, Step
    from pytest_ckptcompat.recipes.recipe import Recipe

REPRODUCIBLE = "reproducible"


def of_steps(
    recipe: Recipe, growth: Applied, old: Mapping[str, Any], target: Mapping[str, Any]
) -> Iterator[Claim]:
    """Claim what each operator promises, and that a second run of the recipe gives the same bytes.

    The recipe is applied again. Each step is freed as soon as the next one is asked for.
    """
    again = old
    for step in recipe.steps(old, target):
        if step.edit.plan:  # otherwise done, and proved, under another name of the same tensor
            yield from _of(step)
        again = step.after
    if recipe.operators:
        yield Claim(REPRODUCIBLE, lambda: _same_twice(growth, again))


def _of(step: Step) -> Iterator[Claim]:
    """Claim what one operator promises; its remarks are added to the last promise."""
    operator = step.operator
    try:
        claims = [
            _decided(each) if isinstance(each, Promise) else each
            for each in operator.prove(step.before, step.after, step.target)
        ]
    except Exception as error:  # from a third-party operator
        reason = error
        yield Claim(f"{operator}", lambda: failed(f"{operator}", reason))
        return
    if not claims:
        claims = [_decided(Promise(f"{operator}", "unchecked", "it promises nothing"))]
    yield from claims[:-1]
    yield replace(claims[-1], proof=lambda: _with_remarks(claims[-1].proof(), step))


def _decided(promise: Promise) -> Claim:
    """Wrap a promise that a third-party operator has already decided."""
    rules = {"broken": "recipe-broken-promise", "unchecked": "recipe-unchecked"}
    told = f"{promise.name}: {promise.detail}"
    found = [finding(rules[promise.status], message=told)] if promise.status in rules else []
    return Claim(promise.name, lambda: (promise, found))


def _with_remarks(verdict: Verdict | None, step: Step) -> Verdict | None:
    if verdict is None or verdict[0].status == "broken":
        return verdict
    promise, found = verdict
    return promise, [*found, *step.operator.remarks(step.before, step.after, step.target)]


def _same_twice(growth: Applied, again: Mapping[str, Any]) -> Verdict:
    apart = {
        key: found
        for key in growth.touched.keys() & growth.state_dict.keys()
        if (found := difference(growth.state_dict[key], again[key])) is not None
    }
    if apart:
        return changed(REPRODUCIBLE, "the same when applied again", apart, ())
    return Promise(REPRODUCIBLE, "kept", "same bytes twice"), []
