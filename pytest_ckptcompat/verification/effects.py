"""What a recipe does to the function of a model, as its steps declare it and its values show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from pytest_ckptcompat.tensors.deferred import materialise

from .regions import rows_moved
from .run_copies import coarser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.recipes.applied import Applied

    from .reach import Elements
    from .regions import Rows


@dataclass(frozen=True)
class Effects:
    """The effects of a recipe; by default, those of one that keeps the function.

    Attributes:
        changes: why the function may change; empty if all steps claim to keep it.
        made: key -> the elements made by steps that don't claim to keep the function; what depends on them
            may differ.
        anywhere: whether keys alone can't tell these elements, so that everything may differ.
        lost: old key -> the step that dropped it, and claims that nothing depends on it.
        eval_only: whether the claim is only for eval mode.
        touched: whether any values were changed.
        rows: where rows went, for dimensions that were not simply extended at the end.
        renamed: old key -> new key, for renamed tensors.
        precision: the coarsest dtype in which weights were computed, or to which loading rounded them.
    """

    changes: tuple[str, ...] = ()
    made: Mapping[str, Elements] = field(default_factory=dict)
    anywhere: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)
    eval_only: bool = False
    touched: bool = False
    rows: Rows = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    precision: torch.dtype = torch.float32


def effects_of(growth: Applied, old: Mapping[str, Any], held: Mapping[str, Any]) -> Effects:
    """Return the effects of a recipe on the state dict `old`, whose result was loaded into `held`."""
    changing = growth.changes_function
    made = {
        key: _made(key, growth, old)
        for key, operators in growth.touched.items()
        if key in growth.state_dict and not changing.keys().isdisjoint(operators)
    }
    return Effects(
        changes=tuple(changing.values()),
        made=made,
        anywhere=not changing.keys().isdisjoint(growth.lost.values()),
        lost={key: str(operator) for key, operator in growth.lost.items() if operator not in changing},
        eval_only=growth.eval_only,
        touched=bool(growth.touched),
        rows=rows_moved(growth, old),
        renamed={old: new for new, old in growth.origin.items() if old is not None and old != new},
        precision=_precision(growth, held),
    )


def _made(key: str, growth: Applied, old: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the elements that a step made: those that differ, if it alone changed the tensor in place."""
    came, new = growth.origin[key], growth.state_dict[key]
    was = None if came is None else old[came]
    in_place = came == key and len(growth.touched[key]) == 1
    if not in_place or not torch.is_tensor(was) or was.shape != new.shape:
        return None
    differ = materialise(was) != materialise(new)
    return differ if bool(differ.any()) else None  # the copy of a block, under the old name


def _precision(growth: Applied, held: Mapping[str, Any]) -> torch.dtype:
    precision = torch.float64
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
