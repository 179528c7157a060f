"""Find what a repository's own loading function got wrong, from where the model's values come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.difference import same_bits

from .same_values import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .origins import Origins

    State = Mapping[str, Any]

UNCHANGED = "unchanged by the loader"
RANDOM = "random values: another seed gives other ones"
NOT_RANDOM = "values of another file, or computed: another seed gives the same"


def faults(
    origins: Origins,
    model: State,
    checkpoint: State,
    *,
    parameters: set[str],
    elsewhere: Callable[[State], Mapping[str, str]],
    before: Callable[[], State] | None,
    again: Callable[[], State | None],
) -> list[Finding]:
    """Find what is wrong with the values of a loaded model.

    A buffer that the checkpoint lacks, and that is the same with another seed, was computed by the
    constructor and is moved to the constants.

    Args:
        origins: the result of `trace`.
        model: the state dict of the loaded model.
        checkpoint: the state dict that it was loaded from, for its shapes.
        parameters: the names of the model's parameters.
        elsewhere: tensors -> which of them are in other parts of the same file, and where.
        before: the model's state dict before the load; None if the loader made the model.
        again: the state dict after another run with another seed; None if that raised.
    """
    told = {**origins.other, **origins.missed}
    was = before() if before is not None and told else None
    told |= {key: UNCHANGED for key in told if was is not None and _same(was.get(key), model[key])}
    unknown = {key: model[key] for key, text in told.items() if not text}
    told |= elsewhere(unknown) if unknown else {}
    unsure = [key for key, text in told.items() if text in ("", UNCHANGED)]
    other_seed = again() if unsure else None
    for key in unsure:
        if other_seed is None:
            break
        if not _same(other_seed.get(key), model[key]):
            told[key] = told[key] or RANDOM
        elif key in origins.missed and key not in parameters:
            del origins.missed[key], told[key]
            origins.constants[key] = "computed, not drawn"
        elif not told[key] and key in origins.missed:
            told[key] = NOT_RANDOM
    if not origins.evidence and (origins.unused or not origins.held):
        origins.missed |= origins.constants  # the loader may have loaded nothing at all
        told |= origins.constants
        origins.constants = {}
    missed = {
        key: text for key, text in told.items() if key in origins.missed or _never_loaded(key, text, model)
    }
    other = {key: text for key, text in told.items() if key in origins.other and key not in missed}
    return [
        *_findings("loader-missed", missed, model, checkpoint, "its values are nowhere in the checkpoint"),
        *_findings("loader-other", other, model, checkpoint, "other values than the checkpoint's"),
        *(finding("loader-unused", key, _shown(checkpoint[key])) for key in origins.unused),
    ]


def _never_loaded(key: str, text: str, model: State) -> bool:
    """Return whether a key was left as the constructor made it."""
    return text in (UNCHANGED, RANDOM) or (
        bool(text) and not nn.parameter.is_lazy(model[key]) and text == constant(model[key])
    )


def _same(one: Any, other: torch.Tensor) -> bool:
    if not isinstance(one, torch.Tensor) or nn.parameter.is_lazy(one) or nn.parameter.is_lazy(other):
        return False
    return not (one.is_meta or other.is_meta) and same_bits(one.cpu(), other.cpu())


def _findings(
    rule: str, told: Mapping[str, str], model: State, checkpoint: State, otherwise: str
) -> Iterator[Finding]:
    for key, text in told.items():
        yield finding(rule, key, _shown(checkpoint.get(key)), _shown(model[key]), text or otherwise)


def _shown(value: Any) -> str:
    if not isinstance(value, torch.Tensor) or nn.parameter.is_lazy(value) or value.is_nested:
        return ""
    return shown(tuple(value.shape), str(value.dtype))
