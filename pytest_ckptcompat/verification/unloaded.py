"""What a load writes and what it leaves: which key went into which tensor, what is still as constructed."""

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
    """Whether the load reached everything: nothing is on meta, and nothing is as its constructor left it.

    A tensor into which the load was heard to copy the checkpoint's is loaded, whatever its value. One that
    was not heard to be written is still as constructed if the same seed constructs the same bits and the
    checkpoint does not have them. What the model's own loader wrote, and what the model leaves out of its own
    state dict, is a finding only if another seed constructs other bits: then its values are random and in no
    file.

    Args:
        model: the model, loaded.
        state_dict: what was loaded, for values that were written in a way that can't be heard.
        loading: what `listen` heard.
        build: seed -> a new model, not loaded. Called only where something was not heard to be written.
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
    """Whether only the values of a tensor can tell that it was loaded. Counters are never random."""
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
