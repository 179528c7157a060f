"""Compare tied keys of the model, of the checkpoint, and of the model that it was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from .templates import Shapes


def tied(renamed: Shapes, model: Shapes, target: Mapping[str, Any]) -> list[list[str]]:
    """Group missing keys with the checkpoint's key of the same tensor in the model, which comes first."""
    missing = [key for key in model if key not in renamed and model[key] is not None]
    if not missing:
        return []
    saved: dict[object, str] = {}
    for key in renamed:
        if model.get(key) is not None:
            saved.setdefault(memory(target[key]), key)
    ties: dict[str, list[str]] = {}
    for key in missing:
        if (first := saved.get(memory(target[key]))) is not None:
            ties.setdefault(first, [first]).append(key)
    return list(ties.values())


def untied(renamed: Shapes, missing: Collection[str], source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield keys of the checkpoint, each with a missing key that was tied to it in the old model."""
    saved = {memory(value): key for key, value in source.items() if key in renamed}
    for key, value in source.items():
        if key in missing and key not in renamed and (first := saved.get(memory(value))) is not None:
            yield first, key


def newly_tied(ties: Mapping[str, object], old_ties: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield pairs of keys that the model ties and the checkpoint does not.

    Args:
        ties: the model's keys -> an object that tied keys share.
        old_ties: the same for the checkpoint, under the same names.
    """
    firsts: dict[object, str] = {}
    for key, tensor in ties.items():
        first = firsts.setdefault(tensor, key)
        if key in old_ties and first in old_ties and old_ties[key] != old_ties[first]:
            yield first, key
