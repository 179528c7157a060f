"""Check that every value arrived in the model unchanged."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.claim import Claim, Verdict
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Promise, finding
from pytest_ckptcompat.core.keys import matches
from pytest_ckptcompat.tensors.deferred import DeferredTensor, materialise
from pytest_ckptcompat.tensors.difference import Difference, difference, magnitude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.recipes.applied import Applied

    from .load_listener import Loading


def transferred(
    growth: Applied,
    old: Mapping[str, Any],
    model: nn.Module,
    loading: Callable[[], Loading | None],
    protect: Sequence[str],
    waived: set[str],
) -> Iterator[Claim]:
    """Claim that untouched keys arrived as in the old checkpoint, and the others as grown."""
    loaded = {key: value for key, value in growth.state_dict.items() if key not in waived}
    untouched = {
        key: old[came]
        for key in loaded
        if key not in growth.touched and (came := growth.origin[key]) is not None
    }
    grown = {key: value for key, value in loaded.items() if key in growth.touched}

    def arrived(name: str, as_it_was: str, wanted: Mapping[str, Any]) -> Verdict:
        return _compared(
            name, as_it_was, wanted, _places(growth.state_dict, loading(), protect), model, protect
        )

    if untouched:
        yield Claim("untouched", partial(arrived, "untouched", "as it was", untouched))
    if grown:
        yield Claim("loaded as grown", partial(arrived, "loaded as grown", "as it was grown", grown))


def _places(
    state_dict: Mapping[str, Any], loading: Loading | None, protect: Sequence[str]
) -> dict[str, list[str]]:
    """Return key -> the names that should hold its tensor. Of several keys for a name, the last counts.

    The model's own code may change loaded tensors, except protected ones.
    """
    if loading is None:
        return {key: [key] for key in state_dict}
    places: dict[str, list[str]] = {}
    for name, keys in loading.sources.items():
        if name not in loading.altered or _guarded(keys[-1], protect):
            places.setdefault(keys[-1], []).append(name)
    overwritten = {key for keys in loading.sources.values() for key in keys[:-1]}
    return {key: [] for key in overwritten} | places


def _compared(
    name: str,
    as_it_was: str,
    wanted: Mapping[str, Any],
    arrived: Mapping[str, list[str]],
    model: nn.Module,
    protect: Sequence[str],
) -> Verdict:
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
        if not places and arrived.get(key) != []:  # a module's extra state may also be a tensor
            elsewhere += 1
            continue
        for place in places:
            if isinstance(value, DeferredTensor) and value.is_in(held[place]):
                continue
            expected = materialise(value)
            if expected.dtype != held[place].dtype:
                casts.add(str(held[place].dtype).removeprefix("torch."))
            found = difference(expected.to(held[place].dtype), held[place])
            if found is not None:
                apart[key] = found
            elif expected.dtype != held[place].dtype and (lost := difference(expected, held[place], 0.0)):
                rounded[key] = lost.size
        equal += key not in apart and key not in rounded
    if apart:
        return changed(name, as_it_was, apart, protect)
    to = ", ".join(sorted(casts))
    told = []
    if equal:
        told.append(f"{count_keys(equal)} bit-equal" + (f" (cast to {to})" if casts and not rounded else ""))
    if rounded:
        most = magnitude(max(rounded.values()))
        told.append(f"{count_keys(len(rounded))} rounded to {to}, by up to {most}")
    if elsewhere:
        told.append(f"{elsewhere} left to the model's own loader")
    return Promise(name, "kept" if equal or rounded else "unchecked", ", ".join(told) or "no tensors"), []


def count_keys(count: int) -> str:
    """Return ``1 key``, ``2 keys``, and so on."""
    return f"{count} key{'' if count == 1 else 's'}"


def changed(
    name: str, as_it_was: str, apart: Mapping[str, Difference], protect: Sequence[str] = ()
) -> Verdict:
    """Return the verdict on tensors that differ from what was promised."""
    findings = [
        finding(
            "recipe-protected-key" if _guarded(key, protect) else "recipe-broken-promise",
            key,
            message=f"is not {as_it_was}: {found}",
        )
        for key, found in apart.items()
    ]
    worst = max(apart, key=lambda key: apart[key].size)
    more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
    return Promise(name, "broken", f"{escape(worst, 60)}: {apart[worst]}{more}"), findings


def _guarded(key: str, protect: Sequence[str]) -> bool:
    return any(matches(pattern, key) for pattern in protect)
