"""Compare tied keys of the model, of the checkpoint, and of the model that it was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from .templates import Shapes


def tied(
    ties: Mapping[str, object], missing: Collection[str], target: Mapping[str, Any]
) -> list[tuple[str, ...]]:
    """Group missing keys with the checkpoint's key of the same tensor in the model, which comes first.

    `ties` has, for each key that both have, an object that the model's tied keys share.
    """
    firsts: dict[object, str] = {}
    for key, tensor in ties.items() if missing else ():
        firsts.setdefault(tensor, key)
    groups: dict[str, tuple[str, ...]] = {}
    for key in missing:
        if (first := firsts.get(memory(target[key]))) is not None:
            groups[first] = (*groups.get(first, (first,)), key)
    return list(groups.values())


def untied(renamed: Shapes, missing: Collection[str], source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield keys of the checkpoint, each with a missing key that was tied to it in the old model."""
    saved = {memory(value): key for key, value in source.items() if key in renamed}
    for key, value in source.items():
        if key in missing and key not in renamed and (first := saved.get(memory(value))) is not None:
            yield first, key


def newly_tied(ties: Mapping[str, object], old_ties: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield pairs of keys that the model ties and the checkpoint does not.

    Both arguments have an object for each key, which tied keys share.
    """
    firsts: dict[object, str] = {}
    for key, tensor in ties.items():
        first = firsts.setdefault(tensor, key)
        if key in old_ties and first in old_ties and old_ties[key] != old_ties[first]:
            yield first, key
