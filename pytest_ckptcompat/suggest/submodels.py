"""Find parts of a checkpoint that are each the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.recipes.operators import drop, strip_prefix

from .evidence import WRAPPERS
from .templates import Globs

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.base import Operator

    from .templates import Shapes

MOST_CHOICES = 4


def submodels(checkpoint: Shapes, model: Shapes) -> list[list[Operator]]:
    """Return the operators that take each part of the checkpoint that has the model's keys and shapes.

    There are none if there is a single such part, or a single one with a wrapper's name: the others are
    copies of it.
    """
    if len(model) < 2 or len(checkpoint) < len(model) or any(key in checkpoint for key in model):
        return []
    first = next(iter(model))
    prefixes = [
        prefix
        for prefix in (key.removesuffix(first) for key in checkpoint if key.endswith(f".{first}"))
        if all(checkpoint.get(f"{prefix}{key}", ()) == shape for key, shape in model.items())
    ]
    wrappers = [prefix for prefix in prefixes if WRAPPERS.issuperset(prefix.rstrip(".").split("."))]
    if len(prefixes) < 2 or len(wrappers) == 1:
        return []
    globs = Globs(checkpoint)
    return [
        [
            *map(drop, globs.cover(key for key in checkpoint if not key.startswith(prefix))),
            strip_prefix(prefix),
        ]
        for prefix in prefixes[:MOST_CHOICES]
    ]
