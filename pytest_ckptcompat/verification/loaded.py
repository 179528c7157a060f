"""Find what a load left undone, and bad loaded values: not finite, or different for names that are tied."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.tensors import difference
from pytest_ckptcompat.tensors.difference import same_bits
from pytest_ckptcompat.tensors.finite import count_not_finite
from pytest_ckptcompat.tensors.footprint import weights

from .load_listener import Loading, loadable
from .same_values import without_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

NAME = "loaded whole"


def loaded_whole(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    loading: Loading | None,
    build: Callable[[int], nn.Module] | None,
) -> tuple[Promise, list[Finding]]:
    """Check that the load reached everything: nothing is on meta or as its constructor left it.

    A tensor counts as loaded if the load was heard to copy the checkpoint's tensor into it. A tensor that was
    not heard to be written is still as constructed if the same seed constructs the same bits and the
    checkpoint has others. A tensor that the model's own loader wrote, or that the model's state dict lacks,
    is a finding only if another seed constructs other bits: its values are then random and in no file. Models
    are built (seed -> a new model) only if some tensor was not heard to be written.
    """
    findings = [
        finding("unloaded-parameter", name, message="is on the meta device: it has no values")
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if tensor.is_meta
    ]
    held, _ = loadable(model)
    names = loading.names if loading else tuple(held)
    # Only their values can tell whether these were loaded. Counters are never random.
    suspects = [
        name
        for name in names
        if loading is None
        or name not in loading.written
        or (name not in loading.sources and held[name].is_floating_point())
    ]
    unchecked = "" if names else "the checkpoint has nothing of the model"
    if suspects and build is None:
        unchecked = f"{len(suspects)} tensors were not seen to be loaded"
    elif suspects and build is not None:
        room, needed = memory.free(), 2 * weights(model)
        if room is None or needed < room:
            findings += _as_constructed(model, state_dict, suspects, loading, build)
        else:
            unchecked = f"two further models take {memory.shown(needed)}, {memory.shown(room)} are free"
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        return Promise(NAME, "broken", f"not loaded: {findings[0].key}{more} of {len(names)}"), findings
    if unchecked:
        return Promise(NAME, "unchecked", unchecked), []
    return Promise(NAME, "kept", f"{len(names)} tensors"), []


def _as_constructed(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    suspects: list[str],
    loading: Loading | None,
    build: Callable[[int], nn.Module],
) -> Iterator[Finding]:
    held, saved = loadable(model)
    first, _ = loadable(build(0))
    same = [
        name
        for name in suspects
        if not held[name].is_meta
        and _same(first.get(name), held[name])
        and not _same(_cast(state_dict.get(name), held[name]), held[name])
    ]
    second = loadable(build(1))[0] if same else {}
    for name in same:
        text = "was not loaded: its values are its constructor's"
        if not _same(second.get(name), first[name]):
            yield finding("unloaded-parameter", name, message=f"{text}, random ones")
        elif name in saved and (loading is None or name not in loading.written):
            yield finding("unloaded-parameter", name, message=text)


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and same_bits(one, other)


def _cast(value: Any, like: torch.Tensor) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return None
    return torch.empty_like(like, device="cpu").copy_(value)


def not_finite(model: nn.Module) -> Iterator[Finding]:
    """Find parameters and buffers with NaN or infinite values; of tied names, only the first.

    The loaded model is checked, not the file, so that no value is read twice.
    """
    seen: set[int] = set()
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or id(value) in seen or without_values(value):
            continue
        seen.add(id(value))
        bad = count_not_finite(value)
        if bad:
            counted = f"{bad} of {value.numel()}"
            are = "value is" if bad == 1 else "values are"
            yield finding("non-finite-value", key, counted, message=f"{bad} {are} NaN or infinite")


def tied_conflicts(model: nn.Module, state_dict: Mapping[str, Any]) -> Iterator[Finding]:
    """Find tied names for which the state dict has different values; only the last one stays.

    Values are read only if the state dict does not tie the names too.
    """
    tied: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and name in state_dict:
            tied.setdefault(id(tensor), []).append(name)
    for first, *others in tied.values():
        for other in others:
            one, two = state_dict[first], state_dict[other]
            if difference.memory(one) != difference.memory(two) and not torch.equal(one, two):
                message = f"the model ties it to {escape(first)}; the values differ"
                yield finding("tied-conflict", other, message=message)
