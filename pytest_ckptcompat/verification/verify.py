"""Check every promise of a recipe on the values in the loaded model."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.tensors.deferred import materialise

from .function import NAME as FUNCTION
from .function import Said, function_kept
from .load_listener import listen
from .loaded import NAME as LOADED
from .loaded import loaded_whole
from .new_values import all_finite, scale_of_new_rows
from .of_steps import of_steps
from .regions import rows_moved
from .run_copies import coarser
from .transfer import transferred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .wide_run import Batch


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
    about rows holds for the loaded model. Prove each claim before asking for the next one. Where
    there are shapes alone, `old`, `growth` and `model` are on the meta device, and claims are listed as
    unproved.

    Args:
        recipe: the recipe; empty if the checkpoint was loaded as it is.
        growth: the result of the recipe on `old`, which was loaded.
        old: the old state dict, real or stored.
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
    return Claim(
        FUNCTION,
        lambda: function_kept(
            source,
            old,
            model,
            batches,
            precision=precision_of(growth, model.state_dict()),
            rows=rows_moved(growth, old),
            renamed={old: new for new, old in growth.origin.items() if old is not None and old != new},
            said=said_of(growth, old),
            method=method,
        ),
    )


def said_of(growth: Applied, old: Mapping[str, Any]) -> Said:
    """Collect what the steps of a recipe claim about the function, and what changing steps made."""
    changing = growth.changes_function
    return Said(
        tuple(changing.values()),
        {
            key: _made(key, growth, old)
            for key, operators in growth.touched.items()
            if key in growth.state_dict and not changing.keys().isdisjoint(operators)
        },
        not changing.keys().isdisjoint(growth.lost.values()),
        {key: str(operator) for key, operator in growth.lost.items() if operator not in changing},
        growth.eval_only,
    )


def _made(key: str, growth: Applied, old: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the elements that a step made: those that differ, if it alone changed the tensor in place."""
    came, new = growth.origin[key], growth.state_dict[key]
    was = None if came is None else old[came]
    in_place = came == key and len(growth.touched[key]) == 1
    if not in_place or not torch.is_tensor(was) or was.shape != new.shape:
        return None
    differ = materialise(was) != materialise(new)
    return differ if bool(differ.any()) else None  # the copy of a block, under the old name


def precision_of(growth: Applied, held: Mapping[str, Any]) -> torch.dtype:
    """Return the coarsest dtype in which the recipe computed weights, or to which loading rounded them.

    Args:
        growth: the result of the recipe.
        held: the state dict of the loaded model.
    """
    precision = torch.float64
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
