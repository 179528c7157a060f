"""What a recipe promised, held against the values in the model that was loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from pytest_ckptcompat.keys import escape, matches
from pytest_ckptcompat.loading import Loading, listen, loaded_whole
from pytest_ckptcompat.models import raised
from pytest_ckptcompat.reading.stored import materialise
from pytest_ckptcompat.reading.values import finite
from pytest_ckptcompat.rules import Finding, Promise, finding

from .difference import Difference, difference, magnitude, same_bits
from .function import NAME as FUNCTION
from .function import function_kept
from .regions import corner, rows_moved
from .twin import coarser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.recipe import Growth, Recipe, Step

    from .twin import Batch

Checked = tuple[Promise, list[Finding]]

UNTOUCHED, GROWN = "untouched", "loaded as grown"
REPRODUCIBLE, FINITE, SCALE = "reproducible", "finite", "scale of new rows"

_LEAST, _MOST = 0.1, 3.0


def verify(
    recipe: Recipe,
    growth: Growth,
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


def _transferred(
    growth: Growth,
    old: Mapping[str, Any],
    model: nn.Module,
    loading: Loading | None,
    protect: Sequence[str],
    waived: set[str],
) -> Iterator[Checked]:
    """What arrived in the model: untouched keys as the old checkpoint has them, others as they were grown."""
    arrived = _arrived(growth.state_dict, loading, protect)
    loaded = growth.state_dict.keys() - waived
    untouched = {
        key: old[came]
        for key, came in growth.origin.items()
        if key in loaded and key not in growth.touched and came is not None
    }
    grown = {
        key: value for key, value in growth.state_dict.items() if key in growth.touched and key in loaded
    }
    if untouched:
        yield _compared(UNTOUCHED, "as it was", untouched, arrived, model, protect)
    if grown:
        yield _compared(GROWN, "as it was grown", grown, arrived, model, protect)


def _arrived(
    state_dict: Mapping[str, Any], loading: Loading | None, protect: Sequence[str]
) -> dict[str, list[str]]:
    """Key -> the names that should hold its tensor as it is. Of several keys for one name the last one stays.

    Where the model's own code goes on to write, it may: but into what is protected.
    """
    if loading is None:
        return {key: [key] for key in state_dict}
    arrived: dict[str, list[str]] = {}
    for name, keys in loading.sources.items():
        if name not in loading.altered or any(matches(pattern, keys[-1]) for pattern in protect):
            arrived.setdefault(keys[-1], []).append(name)
    overwritten = {key for keys in loading.sources.values() for key in keys[:-1]}
    return arrived | {key: [] for key in overwritten if key not in arrived}


def _compared(
    name: str,
    as_it_was: str,
    wanted: Mapping[str, Any],
    arrived: Mapping[str, list[str]],
    model: nn.Module,
    protect: Sequence[str],
) -> Checked:
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    apart: dict[str, Difference] = {}
    equal, elsewhere = 0, 0
    casts, rounded = set[str](), dict[str, float]()
    for key, value in wanted.items():
        if not isinstance(value, torch.Tensor):
            continue
        places = [place for place in arrived.get(key, ()) if place in held]
        if not places and arrived.get(key) != []:  # a module's extra state may be a tensor, too
            elsewhere += 1
            continue
        expected = materialise(value) if places else value
        for place in places:
            if expected.dtype != held[place].dtype:
                casts.add(str(held[place].dtype).removeprefix("torch."))
            found = difference(expected.to(held[place].dtype), held[place])
            if found is not None:
                apart[key] = found
            elif expected.dtype != held[place].dtype and (lost := difference(expected, held[place], 0.0)):
                rounded[key] = lost.size
        equal += key not in apart and key not in rounded
    if apart:
        return _changed(name, as_it_was, apart, protect)
    to = ", ".join(sorted(casts))
    told = []
    if equal:
        told.append(f"{_keys(equal)} bit-equal" + (f" (cast to {to})" if casts and not rounded else ""))
    if rounded:
        told.append(f"{_keys(len(rounded))} rounded to {to}, by up to {magnitude(max(rounded.values()))}")
    if elsewhere:
        told.append(f"{elsewhere} left to the model's own loader")
    return Promise(name, "kept" if equal or rounded else "unchecked", ", ".join(told) or "no tensors"), []


def _keys(count: int) -> str:
    return f"{count} key{'' if count == 1 else 's'}"


def _changed(name: str, as_it_was: str, apart: Mapping[str, Difference], protect: Sequence[str]) -> Checked:
    findings = []
    for key, found in apart.items():
        guarded = any(matches(pattern, key) for pattern in protect)
        rule = "recipe-protected-key" if guarded else "recipe-broken-promise"
        findings.append(finding(rule, key, message=f"is not {as_it_was}: {found}"))
    worst = max(apart, key=lambda key: apart[key].size)
    more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
    return Promise(name, "broken", f"{escape(worst, 60)}: {apart[worst]}{more}"), findings


def _proved(recipe: Recipe, growth: Growth, old: Mapping[str, Any], model: nn.Module) -> Iterator[Checked]:
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


def _finite(growth: Growth, old: Mapping[str, Any]) -> Iterator[Checked]:
    """Nothing that the recipe made is NaN or infinite, unless what it was made from was."""
    made = [key for key in growth.touched if isinstance(growth.state_dict.get(key), torch.Tensor)]
    wrong = [
        finding("recipe-broken-promise", key, message=f"has {bad} values that are NaN or infinite")
        for key in made
        if (bad := _not_finite(growth.state_dict[key]))
        and not any(_not_finite(old[came]) for came in growth.sources[key] if torch.is_tensor(old[came]))
    ]
    if wrong:
        yield Promise(FINITE, "broken", f"{escape(wrong[0].key, 60)} {wrong[0].message}"), wrong
    elif made:
        yield Promise(FINITE, "kept", f"{_keys(len(made))} grown"), []


def _not_finite(tensor: torch.Tensor) -> int:
    return tensor.numel() - finite(tensor)


def _scaled(growth: Growth, old: Mapping[str, Any]) -> Iterator[Checked]:
    """New rows beside old ones are of their size: rows of std 1 beside rows of 0.06 make SGD diverge."""
    ratios: dict[str, float] = {}
    for key, operators in growth.touched.items():
        came, new = growth.origin.get(key), growth.state_dict.get(key)
        if came is None or not isinstance(new, torch.Tensor) or not new.is_floating_point() or new.dim() < 2:
            continue  # a bias has no scale of its own
        ratio = _ratio(materialise(old[came]), materialise(new))
        declared = not any(type(operator).__name__ == "custom" for operator in operators)
        if ratio is not None and not (ratio == 0 and declared):
            ratios[key] = ratio
    odd = {key: ratio for key, ratio in ratios.items() if not _LEAST <= ratio <= _MOST}
    findings = [
        finding(
            "recipe-scale", key, message=f"its new rows are {magnitude(ratio)} times as large as the old ones"
        )
        for key, ratio in odd.items()
    ]
    if odd:
        worst = max(odd, key=lambda key: max(odd[key], 1 / max(odd[key], 1e-9)))
        yield (
            Promise(SCALE, "broken", f"{escape(worst, 60)}: {magnitude(odd[worst])} × the old"),
            findings,
        )
    elif ratios:
        span = sorted({magnitude(min(ratios.values())), magnitude(max(ratios.values()))}, key=float)
        yield Promise(SCALE, "kept", f"{' to '.join(span)} × the old ones"), []


def _ratio(old: torch.Tensor, new: torch.Tensor) -> float | None:
    """Root mean square of what was added beside a tensor over that of what was there; None if nothing was."""
    kept = corner(old, new)
    if kept is None or new.numel() <= old.numel() or not same_bits(old, kept):
        return None
    before, after = _squares(old), _squares(new)
    added = after - before if after > before * (1 + 1e-12) else 0.0
    if not (before > 0 and math.isfinite(added)):
        return None
    return math.sqrt(added / (new.numel() - old.numel()) / before * old.numel())


def _squares(tensor: torch.Tensor) -> float:
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _function(
    growth: Growth,
    old: Mapping[str, Any],
    model: nn.Module,
    source: Callable[[], nn.Module] | None,
    batches: Callable[[int], Batch] | None,
) -> Iterator[Checked]:
    if source is None:
        return
    if growth.unkept:
        yield Promise(FUNCTION, "unchecked", f"not claimed: {growth.unkept}"), []
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


def _precision(growth: Growth, model: nn.Module) -> torch.dtype:
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
