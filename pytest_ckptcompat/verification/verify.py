"""Check every promise of a recipe on the values in the loaded model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.claim import Claim, Verdict, failed
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.tensors.difference import difference

from .effects import effects_of
from .function import NAME as FUNCTION
from .function import function_kept
from .load_listener import listen
from .loaded import NAME as LOADED
from .loaded import loaded_whole
from .new_values import all_finite, scale_of_new_rows
from .transfer import changed, transferred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.recipes.applied import Applied, Step
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .wide_run import Batch


REPRODUCIBLE = "reproducible"


def verify(claims: Iterable[Claim]) -> tuple[list[Promise], list[Finding]]:
    """Prove claims, each before the next one is asked for.

    Returns:
        One promise for each row of the report's table, and findings for those that are broken.
    """
    promises: list[Promise] = []
    findings: list[Finding] = []
    for claim in claims:
        if (verdict := claim.proved()) is not None:
            promises.append(verdict[0])
            findings += verdict[1]
    return promises, findings


def claims(
    recipe: Recipe,
    growth: Applied,
    *,
    old: Mapping[str, Any],
    model: nn.Module,
    build: Callable[[int], nn.Module] | None = None,
    source: Callable[[], nn.Module] | None = None,
    batches: Callable[[int], Batch] | None = None,
    method: str = "forward",
    protect: Sequence[str] = (),
    waived: Sequence[str] = (),
) -> Iterator[Claim]:
    """Return what a recipe and the load after it promise, in the order of the report.

    The loaded values are compared with the grown state dict, and that with the old one, so every promise
    about rows holds for the loaded model. Prove each claim before asking for the next one.

    Args:
        recipe: the recipe; empty if the checkpoint was loaded as it is.
        growth: the result of the recipe on `old`, which was loaded.
        old: the old state dict. If it is on the meta device, claims can be listed, but not proved.
        model: the new model, loaded. It is not changed.
        build: seed -> a new model, not loaded.
        source: builds the model that the checkpoint was made for. Without it, the function is not compared.
        batches: seed -> the arguments of the call.
        method: the method to call.
        protect: patterns of keys that must be unchanged.
        waived: missing and unexpected keys of torch's strict verdict, which were waived.
    """
    loading = cache(lambda: listen(model, growth.state_dict, waived))
    yield from transferred(growth, old, model, loading, protect, set(waived))
    constructed = build(0) if recipe.needs_model and build is not None else model
    yield from of_steps(recipe, growth, old, constructed.state_dict())
    if growth.state_dict:
        yield Claim(LOADED, lambda: loaded_whole(model, growth.state_dict, loading(), build))
    yield from all_finite(growth, old)
    yield from scale_of_new_rows(growth, old)
    if source is not None:
        yield _function(growth, old, model, source, batches, method)


def _function(
    growth: Applied,
    old: Mapping[str, Any],
    model: nn.Module,
    source: Callable[[], nn.Module],
    batches: Callable[[int], Batch] | None,
    method: str,
) -> Claim:
    if batches is None:
        why = "no inputs declared"
        return Claim(FUNCTION, lambda: (Promise(FUNCTION, "unchecked", why), []), why)

    def kept() -> Verdict:
        effects = effects_of(growth, old, model.state_dict())
        return function_kept(source, old, model, batches, effects, method)

    return Claim(FUNCTION, kept)


def of_steps(
    recipe: Recipe, growth: Applied, old: Mapping[str, Any], target: Mapping[str, Any]
) -> Iterator[Claim]:
    """Claim what each operator promises, and that a second run of the recipe gives the same bytes.

    Each step of that run is freed as soon as the next one is asked for.
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
        verdict = failed(f"{operator}", error)
        yield Claim(f"{operator}", lambda: verdict)
        return
    *others, last = claims or [_decided(Promise(f"{operator}", "unchecked", "it promises nothing"))]

    def proof() -> Verdict | None:
        verdict = last.proof()
        if verdict is None or verdict[0].status == "broken":
            return verdict
        return verdict[0], [*verdict[1], *operator.remarks(step.before, step.after, step.target)]

    yield from others
    yield replace(last, proof=proof)


def _decided(promise: Promise) -> Claim:
    """Wrap a promise that a third-party operator has already decided."""
    rules = {"broken": "recipe-broken-promise", "unchecked": "recipe-unchecked"}
    told = f"{promise.name}: {promise.detail}"
    found = [finding(rules[promise.status], message=told)] if promise.status in rules else []
    return Claim(promise.name, lambda: (promise, found))


def _same_twice(growth: Applied, again: Mapping[str, Any]) -> Verdict:
    apart = {
        key: found
        for key in growth.touched.keys() & growth.state_dict.keys()
        if (found := difference(growth.state_dict[key], again[key])) is not None
    }
    if apart:
        return changed(REPRODUCIBLE, "the same when applied again", apart)
    return Promise(REPRODUCIBLE, "kept", "same bytes twice"), []
