"""Operators that change tensors one by one, and what they share: which dimension, which size, which ties."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch

from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.difference import memory

from .arguments import python
from .base import Operator
from .plan import Make, Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Change(NamedTuple):
    """How a tensor is made anew, and what an optimizer keeps for each of its elements (see `Write`)."""

    make: Make
    optimizer_transform: Any = None


@dataclass(frozen=True, repr=False)
class KeyWise(Operator):
    """An operator that makes each tensor anew from itself alone.

    Attributes:
        key: an exact key or a glob. Of the keys that a glob matches, those stay that have nothing to change;
            one at least must change. A tensor that is tied to one that changes moves along.
        computes: whether it computes with the values: of a glob's keys those stay that hold no floats.
    """

    computes: ClassVar[bool] = False

    key: str

    def change(self, key: str, state: State, target: State) -> Change | None:
        """How one tensor changes; None if it has nothing to change.

        Raises:
            RecipeError: it should change, and can't.
        """
        raise NotImplementedError

    def plan(self, state: State, target: State) -> Plan:
        """Every matched tensor that has something to change, and those tied to it."""
        keys = self.matched(self.key, state)
        ties = tied(state)
        plan: dict[str, list[Write]] = {}
        for key in keys:
            if key in plan or not isinstance(state[key], torch.Tensor) or not self._computable(key, state):
                continue
            change = self.change(key, state, target)
            if change is not None:
                for name in _moved(ties[memory(state[key])], key, target):
                    plan[name] = [Write(name, (name,), *change)]
        if not plan:
            raise self.unused(self.key, f"changes nothing: {self._as_it_is(keys[0], state, target)}")
        return plan

    def tensors(self, state: State) -> list[str]:
        """The tensors that `key` names, for the proof."""
        found = (key for key in select(self.key, state.keys()) if isinstance(state[key], torch.Tensor))
        return [key for key in found if self._computable(key, state)]

    def _computable(self, key: str, state: State) -> bool:
        """Whether the operator can compute with a tensor.

        Raises:
            RecipeError: it can't, and the key is named exactly.
        """
        if not self.computes or has_floats(state[key]):
            return True
        if key == self.key:
            raise self.unfit(key, "it holds no real floats")
        return False

    def follows(self, earlier: Operator, state: State) -> bool:
        """Tied tensors were moved along by the same operator on another of their names."""
        if not isinstance(earlier, type(self)) or earlier.key == self.key:
            return False
        others = (each.name for each in fields(self) if each.name != "key")
        if any(getattr(earlier, name) != getattr(self, name) for name in others):
            return False
        there = {memory(state[key]) for key in select(earlier.key, state.keys())}
        keys = select(self.key, state.keys())
        return bool(keys) and all(memory(state[key]) in there for key in keys)

    def _as_it_is(self, key: str, state: State, target: State) -> str:
        has = shape(state[key])
        if has is None:
            return f"{python(key)} is not a tensor"
        wanted = shape(target.get(key))
        model = "the model does not have it" if wanted is None else f"the model has {shown(wanted)}"
        return f"{python(key)} is {shown(has)}, {model}"


def has_floats(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that can be averaged and drawn: real ones."""
    return tensor.is_floating_point()


def tied(state: State) -> dict[object, list[str]]:
    """The names of each tensor, by its `memory`."""
    ties: dict[object, list[str]] = {}
    for key, value in state.items():
        ties.setdefault(memory(value), []).append(key)
    return ties


def _moved(names: Iterable[str], key: str, target: State) -> Iterator[str]:
    """Those names of a tensor that change with `key`: all but where the model has another shape."""
    wanted = shape(target.get(key))
    for name in names:
        if name == key or wanted is None or shape(target.get(name)) in (None, wanted):
            yield name


def shape(value: Any) -> tuple[int, ...] | None:
    """The shape of whatever has one."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):  # None, extra state, parameters that are not initialised yet
        return None


def size_after(
    operator: KeyWise, key: str, dim: int, to: int | None, state: State, target: State
) -> int | None:
    """The size that dimension `dim` of a tensor gets: the one that is given, else the model's.

    Returns:
        None where nothing is to change: it has that size, or a glob matched it and the model has it with no
        such dimension, or not at all.

    Raises:
        RecipeError: the key is named exactly and its size can't be determined, or it has no such dimension.
    """
    has, wanted = tuple(state[key].shape), shape(target.get(key))
    exact = key == operator.key
    if not -len(has) <= dim < len(has):
        if exact or (wanted is not None and wanted != has):
            raise operator.unfit(key, f"it is {shown(has)}, with no dimension {dim}")
        return None
    if to is None and (wanted is None or len(wanted) != len(has)):
        if not exact and wanted is None:
            return None
        why = "the model does not have it" if wanted is None else f"the model has {shown(wanted)}"
        raise operator.unfit(key, f"{why}, so the size of dimension {dim} must be given")
    size = to if to is not None else wanted[dim] if wanted is not None else has[dim]
    return None if size == has[dim] else size


Shape: TypeAlias = tuple[int, ...] | None


def outputs_dim(key: str, old: Callable[[str], Shape], new: Callable[[str], Shape]) -> int | None:
    """0 for a linear layer or a convolution, 1 for a transposed one: there is a bias for every output.

    Args:
        key: of the weight.
        old: key -> its shape in the state dict, None where it has none.
        new: key -> its shape in the model, likewise.

    Returns:
        None where the layer has no bias, or where both dimensions are as long as it.
    """
    module, _, leaf = key.rpartition(".")
    bias = f"{module}.bias" if module else "bias"
    if leaf != "weight":
        return None
    for sizes in (new, old):  # a recipe may have changed one of the two already; the model's belong together
        weight, length = sizes(key), sizes(bias)
        if weight is None or length is None or len(weight) < 2 or len(length) != 1:
            return None
        found = [dim for dim in (0, 1) if weight[dim] == length[0]]
        if len(found) == 1:
            return found[0]
    return None


def outputs_of(key: str, state: State, target: State) -> int | None:
    """`outputs_dim` of a weight in a state dict, for a model that has `target`."""
    return outputs_dim(key, lambda name: shape(state.get(name)), lambda name: shape(target.get(name)))
