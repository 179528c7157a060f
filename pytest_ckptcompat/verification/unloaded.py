"""Check that a load reached every tensor, and find those that are still as constructed."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.core.findings import Finding, Promise, finding
from pytest_ckptcompat.tensors.difference import same_bits
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.verification.load_listener import Loading, _held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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
    is a finding only if another seed constructs other bits: its values are then random and in no file.

    Args:
        model: the loaded model.
        state_dict: the loaded state dict, for values whose writing can't be heard.
        loading: the result of `listen`.
        build: seed -> a new model, not loaded. Called only if some tensor was not heard to be written.
    """
    findings = [
        finding("unloaded-parameter", name, message="is on the meta device: it has no values")
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if tensor.is_meta
    ]
    held, _ = _held(model)
    names = loading.names if loading else tuple(held)
    suspects = [name for name in names if loading is None or _unsure(name, held[name], loading)]
    reason = ""
    if suspects and build is not None:
        room, needed = memory.free(), 2 * weights(model)
        if room is None or needed < room:
            findings += _as_constructed(model, state_dict, suspects, loading, build)
        else:
            reason = f"two further models take {memory.shown(needed)}, {memory.shown(room)} are free"
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        return Promise(NAME, "broken", f"not loaded: {findings[0].key}{more} of {len(names)}"), findings
    if suspects and (build is None or reason):
        return Promise(NAME, "unchecked", reason or f"{len(suspects)} tensors were not seen to be loaded"), []
    if not names:
        return Promise(NAME, "unchecked", "the checkpoint has nothing of the model"), []
    return Promise(NAME, "kept", f"{len(names)} tensors"), []


def _unsure(name: str, tensor: torch.Tensor, loading: Loading) -> bool:
    """Return whether only its values can tell if a tensor was loaded. Counters are never random."""
    return name not in loading.written or (name not in loading.sources and tensor.is_floating_point())


def _as_constructed(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    suspects: list[str],
    loading: Loading | None,
    build: Callable[[int], nn.Module],
) -> Iterator[Finding]:
    held, saved = _held(model)
    first, _ = _held(build(0))
    same = [name for name in suspects if not held[name].is_meta and _same(first.get(name), held[name])]
    same = [name for name in same if not _same(_cast(state_dict.get(name), held[name]), held[name])]
    if not same:
        return
    second, _ = _held(build(1))
    for name in same:
        if not _same(first[name], second.get(name)):
            text = "was not loaded: its values are its constructor's, random ones"
            yield finding("unloaded-parameter", name, message=text)
        elif name in saved and (loading is None or name not in loading.written):
            yield finding(
                "unloaded-parameter", name, message="was not loaded: its values are its constructor's"
            )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and same_bits(one, other)


def _cast(value: Any, like: torch.Tensor) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return None
    return torch.empty_like(like, device="cpu").copy_(value)
