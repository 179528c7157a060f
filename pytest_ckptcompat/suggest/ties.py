"""Names of one tensor, in the model, in the checkpoint, and in the model that it was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from .templates import Shapes


def tied(renamed: Shapes, model: Shapes, target: Mapping[str, Any]) -> list[list[str]]:
    """Keys that the checkpoint lacks, behind the key that it has of the same tensor of the model."""
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
    """Keys that the checkpoint has, each with a missing one that was another name of it in the old model."""
    saved = {memory(value): key for key, value in source.items() if key in renamed}
    for key, value in source.items():
        if key in missing and key not in renamed and (first := saved.get(memory(value))) is not None:
            yield first, key


def newly_tied(ties: Mapping[str, object], old_ties: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Keys of one tensor of the model that are two of the checkpoint.

    Args:
        ties: the model's keys -> what those of one tensor have in common.
        old_ties: the checkpoint's, under the same names.
    """
    firsts: dict[object, str] = {}
    for key, tensor in ties.items():
        first = firsts.setdefault(tensor, key)
        if key in old_ties and first in old_ties and old_ties[key] != old_ties[first]:
            yield first, key
