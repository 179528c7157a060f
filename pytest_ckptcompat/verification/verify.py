"""Check every promise of a recipe against the values in the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.tensors.difference import difference
from pytest_ckptcompat.verification.new_values import REPRODUCIBLE, _finite, _scaled
from pytest_ckptcompat.verification.transfer import Checked, _changed, _transferred

from .function import NAME as FUNCTION
from .function import function_kept
from .load_listener import listen
from .regions import rows_moved
from .run_copies import coarser
from .unloaded import loaded_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.recipes.applied import Applied, Step
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .run_copies import Batch


def verify(
    recipe: Recipe,
    growth: Applied,
    *,
    old: Mapping[str, Any],
    model: nn.Module,
    build: Callable[[int], nn.Module] | None = None,
    source: Callable[[], nn.Module] | None = None,
    batches: Callable[[int], Batch] | None = None,
    protect: Sequence[str] = (),
    waived: Sequence[str] = (),
) -> tuple[list[Promise], list[Finding]]:
    """Whether everything holds that a recipe and the load after it promise.

    What is loaded is compared with the grown state dict, the grown state dict with the old one: so every
    promise about rows is one about the loaded model.

    Args:
        recipe: an empty one where the checkpoint was loaded as it is.
        growth: what it made of `old`, and what was loaded.
        old: the old state dict, real or stored.
        model: the new model, loaded; left as it is.
        build: seed -> a new model, not loaded.
        source: builds the model that the checkpoint was made for; without it, its function is not compared.
        batches: seed -> the arguments of ``forward``.
        protect: patterns of keys that must be as they were.
        waived: keys that are missing or unexpected by torch's strict verdict, which was waived.

    Returns:
        One promise for each row of the report's table, and a finding for each that is broken.
    """
    promises: list[Promise] = []
    findings: list[Finding] = []
    loading = listen(model, growth.state_dict, waived)
    for promise, found in (
        *_transferred(growth, old, model, loading, protect, set(waived)),
        *_proved(recipe, growth, old, model),
        loaded_whole(model, growth.state_dict, loading, build),
        *_finite(growth, old),
        *_scaled(growth, old),
        *_function(growth, old, model, source, batches),
    ):
        promises.append(promise)
        findings += found
    return promises, findings


def _proved(recipe: Recipe, growth: Applied, old: Mapping[str, Any], model: nn.Module) -> Iterator[Checked]:
    """What each operator promises; and that the same recipe on the same state dict gives the same bytes."""
    if not recipe.operators:
        return
    again = old
    for step in recipe.steps(old, model.state_dict()):
        yield from _with_remarks([_with_finding(promise) for promise in _proofs(step)], step)
        again = step.after
    apart = {
        key: found
        for key in growth.touched.keys() & growth.state_dict.keys()
        if (found := difference(growth.state_dict[key], again[key])) is not None
    }
    if apart:
        yield _changed(REPRODUCIBLE, "the same when applied again", apart, ())
    else:
        yield Promise(REPRODUCIBLE, "kept", "same bytes twice"), []


def _proofs(step: Step) -> list[Promise]:
    if not step.edit.plan:
        return []  # it was done, and proved, under another name of the same tensor
    try:
        return step.operator.prove(step.before, step.after, step.target)
    except Exception as error:  # of an operator that somebody else wrote
        return [Promise(f"{step.operator!r}", "unchecked", f"its proof raised {raised(error)}")]


def _with_finding(promise: Promise) -> Checked:
    rule = {"broken": "recipe-broken-promise", "unchecked": "recipe-unchecked", "kept": ""}[promise.status]
    return promise, [finding(rule, message=f"{promise.name}: {promise.detail}")] if rule else []


def _with_remarks(checked: list[Checked], step: Step) -> list[Checked]:
    """What the operator remarks upon stands with the last of its promises."""
    if not checked or any(promise.status == "broken" for promise, _ in checked):
        return checked
    *others, (promise, found) = checked
    return [*others, (promise, [*found, *step.operator.remarks(step.before, step.after, step.target)])]


def _function(
    growth: Applied,
    old: Mapping[str, Any],
    model: nn.Module,
    source: Callable[[], nn.Module] | None,
    batches: Callable[[int], Batch] | None,
) -> Iterator[Checked]:
    if source is None:
        return
    if growth.changes_function:
        yield Promise(FUNCTION, "unchecked", f"not claimed: {growth.changes_function}"), []
    elif batches is None:
        yield Promise(FUNCTION, "unchecked", "no inputs declared"), []
    else:
        yield function_kept(
            source,
            old,
            model,
            batches,
            precision=_precision(growth, model),
            rows=rows_moved(growth, old),
            renamed={old: new for new, old in growth.origin.items() if old is not None and old != new},
        )


def _precision(growth: Applied, model: nn.Module) -> torch.dtype:
    """The coarsest dtype in which the recipe computed weights, or to which loading rounded them."""
    precision = torch.float64
    held = model.state_dict()
    for key, value in growth.state_dict.items():
        if not _is_float(value):
            continue
        if any(operator.rounds for operator in growth.touched.get(key, ())):
            precision = coarser(precision, value.dtype)
        if _is_float(there := held.get(key)) and coarser(value.dtype, there.dtype) != value.dtype:
            precision = coarser(precision, there.dtype)
    return precision


def _is_float(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
